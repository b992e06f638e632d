#!/usr/bin/env bash
# reqwest's NoProxy takes `.example.org` and `example.org` for a domain and all below it. `*.example.org`,
# `example.org:443`, `[::1]` and `https://example.org`, which people write for other programs, are taken without an
# error and match nothing; `*` covers names, and no address.
# Seen with reqwest 0.13.5.
set -euo pipefail
work=$(mktemp -d)
cd "$work"
trap 'rm -rf "$work"' EXIT
cargo -q init --name show .
cargo -q add reqwest@=0.13.5 --no-default-features --features blocking
cat > src/main.rs <<'RUST'
use reqwest::{NoProxy, Proxy, blocking::Client};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

/// Answers everything, so that a request that got an answer went through it.
fn proxy() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 299 By the proxy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    format!("http://{address}")
}

fn main() {
    let proxy = proxy();
    let is_direct = |no_proxy: &str, url: &str| {
        let no_proxy = NoProxy::from_string(no_proxy);
        assert!(no_proxy.is_some());
        let proxy = Proxy::all(&proxy).unwrap().no_proxy(no_proxy);
        // What goes direct meets a name that does not exist, or a port that nobody has.
        let client = Client::builder().proxy(proxy).timeout(Duration::from_secs(5)).build().unwrap();
        !client.get(url).send().is_ok_and(|answer| answer.status() == 299)
    };
    let name = "http://a.example.invalid:9/";
    for (entry, url, expected) in [
        ("example.invalid", name, true),
        (".example.invalid", name, true),
        ("*.example.invalid", name, false),
        ("a.example.invalid:9", name, false),
        ("http://a.example.invalid", name, false),
        ("*", name, true),
        ("*", "http://127.0.0.1:9/", false),
        ("::1", "http://[::1]:9/", true),
        ("[::1]", "http://[::1]:9/", false),
    ] {
        let seen = is_direct(entry, url);
        println!("no_proxy {entry}: {url} {}", if seen { "direct" } else { "by the proxy" });
        assert_eq!(seen, expected);
    }
}
RUST
cargo -q run
echo "as described"
