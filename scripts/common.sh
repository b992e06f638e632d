# Shared by the scripts beside it; sourced, not run. Everything that needs a Docker engine gets it
# from here, so that one place knows how to obtain one.
# shellcheck shell=bash

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The Makefile builds with an explicit target, because only then can binaries be linked statically.
TRIPLE=${TRIPLE:-$(rustc -vV 2>/dev/null | sed -n 's/^host: //p')}
TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}
# shellcheck disable=SC2034 # the scripts that source this use it
BINARIES=${BINARIES:-$TARGET_DIR/$TRIPLE/release}
ENGINE_START_S_MAX=60

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
die() { printf '\033[1;31merror:\033[0m %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# Installs Debian packages, or says how to.
install_packages() {
  local purpose=$1; shift
  if ! has apt-get; then
    die "$purpose is missing, and this is no Debian: install it by the means of your system"
  elif ((EUID != 0)); then
    die "$purpose is missing: sudo apt-get install $*"
  fi
  say "installing $purpose: $*"
  DEBIAN_FRONTEND=noninteractive apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

engine_answers() { docker version >/dev/null 2>&1; }

# Makes sure that a Docker engine answers.
need_engine() {
  if has docker && engine_answers; then return; fi
  if has docker && docker version 2>&1 | grep -q 'permission denied'; then
    die "the Docker engine does not let you in: run this as root, or join the group docker (sudo usermod -aG docker $USER) and log in again"
  fi
  if ! has docker || ! has dockerd; then
    # Without recommended packages there would be no iptables, and no engine without it.
    install_packages "a Docker engine" docker.io iptables ca-certificates
  fi
  if engine_answers; then return; fi
  ((EUID == 0)) || die "no Docker engine answers: start it (sudo systemctl start docker)"
  start_engine
}

start_engine() {
  say "starting the Docker engine"
  if [[ -d /run/systemd/system ]]; then
    systemctl start docker
  else
    # Its own session: it outlives this script and its terminal.
    setsid dockerd >/var/log/dockerd.log 2>&1 </dev/null &
  fi
  local deadline=$((SECONDS + ENGINE_START_S_MAX))
  until engine_answers; do
    ((SECONDS < deadline)) || die "the Docker engine does not answer after $ENGINE_START_S_MAX s; see /var/log/dockerd.log or journalctl -u docker"
    sleep 0.5
  done
}

# Makes sure that a Compose tool exists, as a program of its own or as a part of the docker client.
need_compose() {
  if has docker-compose || docker compose version >/dev/null 2>&1; then return; fi
  install_packages "Compose" docker-compose
}

compose() {
  if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

# Prints the names of running containers whose log driver is this plugin.
containers_using() {
  local plugin=$1 ids
  ids=$(docker ps -q)
  [[ -n $ids ]] || return 0
  # shellcheck disable=SC2086 # one word per container
  docker inspect -f '{{.HostConfig.LogConfig.Type}} {{.Name}}' $ids |
    sed -n "s|^$plugin\(:latest\)\? /||p"
}
