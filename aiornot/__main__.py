"""``python -m aiornot`` is the same as ``aiornot``."""

from aiornot.cli import main

if __name__ == "__main__":
    main()
