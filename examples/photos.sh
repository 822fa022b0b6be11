# The walk on parquet that the datasets library wrote, with crops of real photographs.
# Usage: sh examples/photos.sh FOLDER
set -eu
here=${1:-photos}
examples=$(dirname "$0")
[ -f "$here/parquet/train-00001-of-00002.parquet" ] || python "$examples/photos.py" "$here/parquet"
aiornot prepare "$here/parquet" --out "$here/prepared" --profile full --size 64 --geometry crop
aiornot tune "$examples/photos_chain" --data "$here/prepared" --storage "$here/runs"
aiornot show photos_chain --trials --storage "$here/runs"
aiornot evaluate "$here/runs/photos_chain/bundle" --data "$here/prepared" --split test
