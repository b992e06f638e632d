#!/usr/bin/env bash
# Installs, replaces and removes the plugin on the engine at hand (DOCKER_HOST is honoured).
#
#   plugin.sh install [--name NAME] [--image IMAGE] [SETTING=VALUE…]
#   plugin.sh uninstall [--name NAME]
#   plugin.sh journal [--name NAME] ls | show ID | verify
#
# `install` packs the static binary of `make build`, or with --image the root of that image. A
# plugin of the same name is replaced, and nothing of it is lost:
# - While running containers use it, its FIFOs must stay where they are, or those containers could
#   not be stopped any more. So only its binary changes; config.json stays that of the old one.
# - Otherwise a new plugin takes its place, with its settings and its journals.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

main() {
  local command=${1:-}; shift || true
  name=tencent-cls image=""
  journal=()
  declare -gA settings=()
  while (($# > 0)); do
    case $1 in
      --name) name=$2; shift 2 ;;
      --image) image=$2; shift 2 ;;
      [A-Z]*=* | run.source=* | tls.source=*) settings[${1%%=*}]=${1#*=}; shift ;;
      [a-z0-9]* | --raw)
        [[ $command == journal ]] || die "unknown argument $1"
        journal+=("$1"); shift ;;
      *) die "unknown argument $1" ;;
    esac
  done
  case $command in
    install) install_plugin ;;
    uninstall) uninstall_plugin ;;
    journal) inspect_journals ;;
    *) die "usage: plugin.sh install|uninstall|journal [--name NAME] [--image IMAGE] [SETTING=VALUE…]" ;;
  esac
}

plugin_id() { docker plugin inspect -f '{{.Id}}' "$name" 2>/dev/null; }

refuse_if_in_use() {
  local users
  users=$(containers_using "$name")
  [[ -z $users ]] || die "running containers log through $name; stop them first:"$'\n'"$users"
}

# Where the engine keeps the plugin's files, on its own host.
plugin_folder() { echo "$(docker info -f '{{.DockerRootDir}}')/plugins/$1"; }

# What the plugin has in /run/docker/logging/state.
state_folder() { echo "$(plugin_folder "$1")/propagated-mount/state"; }

# Where the state lies while a plugin is replaced.
saved_state() { echo "$(docker info -f '{{.DockerRootDir}}')/$name-state"; }

install_plugin() {
  stage=$(mktemp -d)
  carried=""
  trap clean_up EXIT
  stage_files
  local old_id
  if old_id=$(plugin_id); then
    if [[ -n $(containers_using "$name") ]]; then
      swap_binary "$old_id"
      return
    fi
    take_over "$old_id"
  elif [[ -d $(saved_state) ]]; then
    # An earlier replacement has failed half-way.
    carried=$(saved_state)
    say "taking on the logs in $carried"
  fi
  docker plugin create "$name" "$stage/plugin" >/dev/null
  give_state_back
  change_settings
  enable || die "the engine can't enable $name; the driver's own words are in the engine's log (journalctl -u docker)"
  say "plugin $name is enabled"
}

enable() { docker plugin enable "$name" >/dev/null; }

change_settings() {
  local key
  for key in "${!settings[@]}"; do docker plugin set "$name" "$key=${settings[$key]}"; done
}

# Puts the new binary in the place of the old one. Containers go on meanwhile; what they write waits
# in the FIFOs for the second that this takes.
swap_binary() {
  local binary
  binary=$(plugin_folder "$1")/rootfs/cls-driver
  [[ -w $binary ]] ||
    die "running containers log through $name, and its files can't be reached from here: run this as root on the engine's host, or stop them first:"$'\n'"$(containers_using "$name")"
  # A new file under the old name: the running process keeps the one that it has.
  cp "$stage/plugin/rootfs/cls-driver" "$binary.new"
  cp "$binary" "$binary.old"
  docker plugin disable -f "$name" >/dev/null
  mv "$binary.new" "$binary"
  change_settings
  if enable; then
    rm "$binary.old"
    say "plugin $name has a new binary; containers that use it were not touched"
  else
    mv "$binary.old" "$binary"
    enable || die "the engine can't enable $name any more; see the engine's log (journalctl -u docker)"
    die "the engine can't enable $name with the new binary; it runs with the old one again. See the engine's log (journalctl -u docker)"
  fi
}

clean_up() {
  rm -rf "$stage"
  if [[ -n $carried ]]; then say "logs that are not shipped yet are in $carried"; fi
}

stage_files() {
  mkdir -p "$stage/plugin/rootfs"
  cp "$ROOT/config.json" "$stage/plugin/"
  if [[ -n $image ]]; then
    local container
    container=$(docker create "$image")
    docker export "$container" | tar -x -C "$stage/plugin/rootfs" --exclude 'dev/*' --exclude 'proc/*'
    docker rm "$container" >/dev/null
  else
    [[ -x $BINARIES/cls-driver ]] || die "$BINARIES/cls-driver does not exist: run \`make build\`"
    cp "$BINARIES/cls-driver" "$stage/plugin/rootfs/"
  fi
  if ! ldd "$stage/plugin/rootfs/cls-driver" 2>&1 | grep -Eq 'statically linked|not a dynamic'; then
    die "cls-driver is not a static binary; in a plugin it would not start: run \`make build\`"
  fi
}

# Removes the old plugin and keeps its settings and its state.
take_over() {
  local old_id=$1 state
  if [[ -e $(saved_state) ]]; then
    die "$(saved_state) holds logs that an earlier replacement could not give back: remove the plugin ($0 uninstall --name $name) to install it anew with them, or move that folder away to give them up"
  fi
  keep_settings
  docker plugin disable "$name" >/dev/null 2>&1 || true
  state=$(state_folder "$old_id")
  if [[ -d $state ]]; then
    carried=$(saved_state)
    mv "$state" "$carried"
  elif [[ ! -r ${state%/plugins/*} && -z ${FORCE:-} ]]; then
    die "the journals of $name can't be reached from here to be kept: run this as root on the engine's host, or with FORCE=1 to give up what is not shipped yet"
  fi
  docker plugin rm -f "$name" >/dev/null
  say "replacing plugin $name"
}

# Adds the old plugin's settings to those asked for now, which win. Empty is the default; and the
# new plugin may not know a setting that the old one had.
keep_settings() {
  local setting key
  while IFS= read -r setting; do
    key=${setting%%=*}
    if [[ $key == PLUGIN_SOCKET || $key == STATE_DIR || $key == FIFO_DIR || -z ${setting#*=} ]]; then continue; fi
    if [[ $key != *.source ]] && ! grep -q "\"name\": \"$key\"" "$ROOT/config.json"; then continue; fi
    settings[$key]=${settings[$key]-${setting#*=}}
  done < <(docker plugin inspect "$name" -f \
    '{{range .Settings.Env}}{{println .}}{{end}}{{range .Settings.Mounts}}{{.Name}}.source={{.Source}}{{println}}{{end}}')
}

give_state_back() {
  [[ -n $carried ]] || return 0
  local state
  state=$(state_folder "$(plugin_id)")
  mkdir -p "${state%/state}"
  mv "$carried" "$state"
  carried=""
}

uninstall_plugin() {
  plugin_id >/dev/null || { say "no plugin $name is installed"; return; }
  refuse_if_in_use
  docker plugin disable "$name" >/dev/null 2>&1 || true
  docker plugin rm -f "$name" >/dev/null
  say "plugin $name is removed, and its journals with it"
}

# Looks into the plugin's journals with its own binary, which need not run for that.
inspect_journals() {
  local id binary
  id=$(plugin_id) || die "no plugin $name is installed"
  binary=$(plugin_folder "$id")/rootfs/cls-driver
  [[ -x $binary ]] || die "$binary can't be reached from here: run this as root on the engine's host"
  "$binary" journal --state-dir "$(state_folder "$id")" "${journal[@]}"
}

main "$@"
