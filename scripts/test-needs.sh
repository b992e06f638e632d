#!/usr/bin/env bash
# Makes sure that the tests find what they need: an engine, Compose, a registry, Python for the
# official SDK, network namespaces, and openssl for README's certificates.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

((EUID == 0)) || die "the end-to-end tests start an engine of their own, and only root may: run this as root (sudo make test), or \`cargo test --workspace\` for all other tests"
need_engine
need_compose
if ! has docker-registry; then
  install_packages "a registry of images" docker-registry
  # The tests start their own; the package's would listen to everyone.
  if [[ -d /run/systemd/system ]]; then systemctl disable --now docker-registry; fi
fi
has containerd || install_packages "containerd" containerd
python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages "Python with venv" python3-venv
has ip || install_packages "network namespaces" iproute2
has openssl || install_packages "openssl" openssl
