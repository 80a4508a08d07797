#!/bin/sh
# As in the official image: the first word is a command of `weed`, and a server keeps its data in /data.
set -eu

if [ "${1:-}" = server ]; then
    shift
    set -- server -dir=/data -volume.max=0 -master.volumePreallocate -master.volumeSizeLimitMB=1024 "$@"
fi
exec /usr/bin/weed -logtostderr=true "$@"
