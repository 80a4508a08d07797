#!/bin/sh
# As in the official image: options alone are those of the server, and the server gives up root.
set -eu

case ${1:-} in
    -* | *.conf) set -- valkey-server "$@" ;;
esac
if [ "$1" = valkey-server ] && [ "$(id -u)" = 0 ]; then
    chown --recursive valkey:valkey .
    exec setpriv --reuid=valkey --regid=valkey --clear-groups -- "$0" "$@"
fi
exec "$@"
