#!/usr/bin/env bash
# Shows a container's lines becoming records: real engine, real plugin, real shipper; only the cloud
# is a stand-in. Needs the binaries that `make demo` builds. Leaves nothing behind, also after Ctrl-C.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

PROJECT=cls-demo
CONTAINER=cls-demo-chatter
TOPIC=demo-topic
RECORDS_S_MAX=30
START_S_MAX=30

main() {
  need_engine
  need_compose
  docker info -f '{{.OSType}}' | grep -qx linux || die "the plugin needs an engine on Linux"
  stage=$(mktemp -d)
  trap clean_up EXIT
  trap 'exit 130' INT TERM
  choose_names
  build_images
  say "starting the stand-in for CLS ($standin) and the shipper"
  demo_compose up -d
  wait_for "the stand-in" answers "$standin"
  wait_for "the shipper" answers "$CLS_SHIPPER__ADMIN__LISTEN"
  "$ROOT/scripts/plugin.sh" install --name "$plugin" \
    SHIPPER="unix:///host$CLS_SHIPPER_RUN/shipper.sock" HOST_NAME=demo-host
  follow_records
  run_workload
  compare
}

# Names and addresses that nobody uses: a real installation on this engine is not touched.
choose_names() {
  plugin=tencent-cls
  if docker plugin inspect "$plugin" >/dev/null 2>&1; then plugin=tencent-cls-demo; fi
  standin=127.0.0.1:$(free_port 9080)
  export CLS_SHIPPER_IMAGE=cls-shipper:demo CLS_STANDIN_IMAGE=cls-standin:demo
  export CLS_SHIPPER_CONFIG=$stage/shipper.toml CLS_SHIPPER_RUN=/run/$PROJECT
  export CLS_STANDIN_LISTEN=$standin
  CLS_SHIPPER__ADMIN__LISTEN=127.0.0.1:$(free_port 9464)
  export CLS_SHIPPER__ADMIN__LISTEN
  sed "s|^endpoint = .*|endpoint = \"http://$standin\"|" "$ROOT/deploy/demo.toml" >"$stage/shipper.toml"
}

free_port() {
  local port=$1
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do ((port++)); done
  echo "$port"
}

# The product's Dockerfiles compile everything again inside a container. The demonstration has the
# binaries already, so it packs those.
build_images() {
  local binary
  for binary in cls-shipper cls-standin chatter; do
    [[ -x $BINARIES/$binary ]] || die "$BINARIES/$binary does not exist: run \`make demo\`"
    tar -C "$BINARIES" -c "$binary" |
      docker import -c "ENTRYPOINT [\"/$binary\"]" - "${binary/#chatter/cls-chatter}:demo" >/dev/null
  done
}

demo_compose() { compose -p $PROJECT -f "$ROOT/docker-compose.yml" --profile demo "$@"; }

wait_for() {
  local what=$1; shift
  local deadline=$((SECONDS + START_S_MAX))
  until "$@"; do
    if ((SECONDS >= deadline)); then
      demo_compose logs --tail 20 >&2
      die "$what does not answer after $START_S_MAX s; its last words are above"
    fi
    sleep 0.2
  done
}

answers() { (exec 3<>"/dev/tcp/${1/://}") 2>/dev/null; }

# GET without curl, which a new machine may not have.
http_get() {
  exec 3<>"/dev/tcp/${1/://}"
  printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$2" "$1" >&3
  sed '1,/^\r$/d' <&3
  exec 3>&-
}

follow_records() {
  say "records, as CLS takes them in:"
  docker logs -f "$(demo_compose ps -q standin)" 2>/dev/null |
    sed -u -e '/^listening on/d' -e 's/^/  CLS │ /' &
  follower=$!
}

run_workload() {
  docker run -d --name $CONTAINER --network none \
    --log-driver "$plugin" --log-opt topic_id=$TOPIC --log-opt tag=demo \
    cls-chatter:demo --demo >/dev/null
  # What it wrote, to compare: `docker logs` joins a line of many pieces with the next one.
  "$BINARIES/chatter" --demo >"$stage/written" 2>&1
  docker wait $CONTAINER >/dev/null
}

compare() {
  local written arrived=0 deadline=$((SECONDS + RECORDS_S_MAX))
  written=$(wc -l <"$stage/written")
  while ((arrived < written && SECONDS < deadline)); do
    sleep 0.3
    arrived=$(http_get "$standin" "/records?topic_id=$TOPIC" | grep -c '"seq"' || true)
  done
  sleep 0.3
  kill "$follower" 2>/dev/null || true
  ((arrived == written)) || die "the container wrote $written lines, and CLS has $arrived records"
  say "the container wrote $written lines, and CLS has $arrived records"
}

clean_up() {
  trap '' INT TERM
  set +e
  say "cleaning up"
  [[ -n ${follower:-} ]] && kill "$follower" 2>/dev/null
  docker rm -f $CONTAINER >/dev/null 2>&1
  [[ -n ${plugin:-} ]] && docker plugin rm -f "$plugin" >/dev/null 2>&1
  if [[ -n ${CLS_SHIPPER_RUN:-} ]]; then
    demo_compose down -t 5 >/dev/null 2>&1
    rm -rf "${CLS_SHIPPER_RUN:?}" 2>/dev/null
  fi
  docker rmi -f cls-shipper:demo cls-standin:demo cls-chatter:demo >/dev/null 2>&1
  rm -rf "$stage"
}

main "$@"
