# The walk on parquet that the datasets library wrote, with crops of real photographs.
# Usage: sh examples/photos.sh FOLDER
set -eu
here=${1:-photos}
[ -f "$here/parquet/train-00001-of-00002.parquet" ] || python "$(dirname "$0")/photos.py" "$here/parquet"
for profile in reduced full; do
    aiornot prepare "$here/parquet" --out "$here/prepared" --profile $profile --size 64 --geometry crop
done
aiornot tune "$(dirname "$0")/photos_chain" --data "$here/prepared" --storage "$here/runs"
aiornot show photos_chain --storage "$here/runs"
aiornot evaluate "$here/runs/photos_chain/bundle" --data "$here/prepared" --split test
