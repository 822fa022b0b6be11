# The whole walk on synthetic stand-in data; run it again and it goes on where it was.
# Usage: sh examples/demo.sh FOLDER
set -eu
here=${1:-demo}
aiornot demo-data "$here/parquet" --num-files 3
aiornot prepare "$here/parquet" --out "$here/prepared" --profile reduced --size 64 --limit 2000
aiornot prepare "$here/parquet" --out "$here/prepared" --profile full --size 64
aiornot tune demo --data "$here/prepared" --storage "$here/runs"
aiornot show demo --trials --storage "$here/runs"
aiornot evaluate "$here/runs/demo/bundle" --data "$here/prepared" --split test
aiornot report demo --storage "$here/runs" --data "$here/prepared"  # now with the test split
aiornot predict "$here/runs/demo/bundle" "$here/parquet/images"
cat <<END

Where everything lies
  $here/parquet             the demo data: a synthetic stand-in, its scores say nothing of real images
  $here/prepared            the image files that training reads
  $here/runs/demo           the ledger of every stage and trial, checkpoints, offline W&B runs
  $here/runs/demo/bundle    the delivered model; in baseline/ what it was compared with
Next: . .venv/bin/activate; aiornot show demo explore --storage $here/runs; make photos; README.md
END
