#!/usr/bin/env bash
# Installs what cargo cannot: PostgreSQL's server programs and a C compiler. Does nothing where they are there.
set -eu

have_postgres() {
    command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres >/dev/null 2>&1 ||
        { command -v pg_config >/dev/null && [ -x "$(pg_config --bindir)/postgres" ]; }
}

missing=()
have_postgres || missing+=(postgresql)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v cargo >/dev/null || {
    echo "setup: cargo is not on the PATH: install Rust 1.94 or newer (https://rustup.rs)" >&2
    exit 1
}
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "setup: please install these (Debian's names): ${missing[*]}" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "setup: please run: sudo apt-get install ${missing[*]}" >&2
    exit 1
fi
# No cluster of the system's own: taskvec runs a private one inside its data folder.
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
