#!/usr/bin/env bash
# Builds the images of both Dockerfiles, unmodified: cls-driver:TAG and cls-shipper:TAG.
#
#   images.sh [TAG]                                      (latest; DOCKER_HOST is honoured)
#
# Compiles with the profile named by IMAGE_PROFILE, or for release.
# Where no registry answers, the program named by BASE_IMAGES, if there is one, is given the
# Dockerfiles to provide the base images that they name.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

tag=${1:-latest}
dockerfiles=("$ROOT/Dockerfile.driver" "$ROOT/Dockerfile.shipper")
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml" | head -1)
base=$(sed -n 's/^ARG RUST_IMAGE=//p' "$ROOT/Dockerfile.driver")

need_engine
options=()
if ! docker pull -q "$base" >/dev/null 2>&1; then
  if [[ -n ${BASE_IMAGES:-} ]]; then
    # From the root folder: rust-toolchain.toml must not choose which toolchain goes in.
    (cd / && "$BASE_IMAGES" "${dockerfiles[@]}")
  elif ! docker image inspect "$base" >/dev/null 2>&1; then
    die "no registry answers, and the engine has no image $base"
  fi
  # BuildKit asks the registry even for images that exist; the classic builder does not.
  export DOCKER_BUILDKIT=0
  options=(--network host)
fi
# The classic builder keeps every build stage it ever made; those of today are its cache.
docker image prune -f --filter label=cls.stage=build --filter until=24h >/dev/null
for dockerfile in "${dockerfiles[@]}"; do
  image=cls-${dockerfile##*.}:$tag
  say "building $image"
  docker build "${options[@]}" --build-arg PROFILE="${IMAGE_PROFILE:-release}" --build-arg VERSION="$version" \
    -f "$dockerfile" -t "$image" "$ROOT"
done
