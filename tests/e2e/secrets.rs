//! Keys and tokens: after a run in which all kinds of them were used, nothing that either process has
//! said or kept shows one, at the most talkative level of both.
//!
//! Method: a shipper on TCP with a key in its configuration and hosts that show a token; containers
//! that use its key, that bring keys of their own, good and bad, and that are refused. Then every
//! log, answer of the admin server, command's output, dead letter, journal listing and record is
//! searched. One place is known to have keys of containers, and nobody but root reads it: the driver's
//! table holds what Docker's own files hold.

use crate::engine::run;
use crate::scene::{
    OTHER_SECRET_ID, OTHER_SECRET_KEY, OTHER_TOPIC_ID, PLUGIN, Scene, free_address, root, scene,
};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use world::client;
use world::nodes::everything_in;
use world::processes::{Process, SECRET_ID, SECRET_KEY, binary, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);
const TOKEN: &str = "token-of-this-host-1f2e3d";
const WRONG_KEY: &str = "SKWRONGEXAMPLE";
const MISSPELT_KEY: &str = "SKMISSPELTEXAMPLE";

/// All of them.
const SECRETS: [&str; 7] = [
    SECRET_ID,
    SECRET_KEY,
    OTHER_SECRET_ID,
    OTHER_SECRET_KEY,
    TOKEN,
    WRONG_KEY,
    MISSPELT_KEY,
];

/// A shipper that knows hosts by a token.
struct Shipper {
    process: Process,
    config: PathBuf,
    dead_letters: PathBuf,
    admin: SocketAddr,
}

impl Shipper {
    async fn start(scene: &Scene, listen: SocketAddr, token_file: &Path) -> Self {
        let at = |name: &str| scene.engine.folder().join(name);
        let (config, dead_letters) = (at("keys.toml"), at("dead-letter.jsonl"));
        let admin = free_address();
        let text = format!(
            "[listen]\ntcp = \"{listen}\"\n[admin]\nlisten = \"{admin}\"\n\
             [dead_letter]\npath = \"{}\"\n[[tenants]]\nname = \"all\"\ntoken_file = \"{}\"\nhosts = [\"*\"]\n{}",
            dead_letters.display(),
            token_file.display(),
            scene.sections(),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(binary("cls-shipper").unwrap());
        command.arg("--config").arg(&config);
        command.args(["--log-level", "trace"]);
        let mut process = Process::start("shipper", command, scene.engine.folder()).unwrap();
        let is_ready = async || client::call(admin, "GET", "/readyz").await.is_ok();
        process.wait_ready(is_ready).await.unwrap();
        Self {
            process,
            config,
            dead_letters,
            admin,
        }
    }

    /// Returns what a command of the shipper prints.
    async fn command(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(binary("cls-shipper").unwrap());
        command.arg("--config").arg(&self.config).args(arguments);
        said(command).await
    }

    async fn answer(&self, path: &str) -> String {
        let answer = client::call(self.admin, "GET", path).await;
        let answer = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Returns all that a command prints.
async fn said(command: Command) -> String {
    let output = run(command).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Runs containers that use all keys. Returns what the engine said to those who started them.
async fn use_all(scene: &Scene, shipper: &Shipper) -> String {
    let id = format!("secret_id={OTHER_SECRET_ID}");
    let own = [
        "--log-opt",
        &id,
        "--log-opt",
        &format!("secret_key={OTHER_SECRET_KEY}"),
    ];
    let wrong = [
        "--log-opt",
        &id,
        "--log-opt",
        &format!("secret_key={WRONG_KEY}"),
    ];
    let shown = "append_container_details_keys=config,container_name";
    let shown = ["--log-opt", shown, "--log-opt", "record-id=true"];
    let lines = ["--lines", "10"];
    scene.run("plain", &shown, &lines).await;
    scene.run("own", &[&own[..], &shown].concat(), &lines).await;
    let topic = format!("topic_id={OTHER_TOPIC_ID}");
    let few = ["--log-opt", "retries=1", "--log-opt", &topic];
    scene
        .run("wrong", &[&wrong[..], &few].concat(), &lines)
        .await;
    scene.wait_for_records(20).await;
    let has_letters = async || fs::metadata(&shipper.dead_letters).is_ok_and(|file| file.len() > 0);
    wait_until("dead letters", DEADLINE, has_letters)
        .await
        .unwrap();
    // The table keeps the keys of those that run.
    let stays = [&["--detach"], &own[..]].concat();
    scene.run("stays", &stays, &["--hold"]).await;
    let misspelt = format!("secretkey={MISSPELT_KEY}");
    let mut refusals = String::new();
    for (name, options) in [
        ("misspelt", vec!["--log-opt", &misspelt]),
        ("half", own[..2].to_vec()),
        (
            "bad",
            [&own[..], &["--log-opt", "template={nothing}"]].concat(),
        ),
    ] {
        let mut start = scene.engine.command("docker");
        start.args([
            "run",
            "--network=none",
            "--name",
            name,
            "--log-driver",
            PLUGIN,
        ]);
        start.args(options).arg("chatter");
        let refusal = said(start).await;
        assert!(refusal.contains("log-opt"), "{refusal}");
        refusals += &refusal;
    }
    refusals
}

fn check(place: &str, text: &str) {
    assert!(!text.trim().is_empty(), "{place} has something to search");
    for secret in SECRETS {
        assert!(!text.contains(secret), "{secret} is in {place}");
    }
}

#[test]
fn no_key_is_shown_anywhere() {
    scene(&[], async |scene| {
        let tls = scene.engine.folder().join("tls");
        fs::create_dir(&tls).unwrap();
        let token_file = tls.join("token");
        fs::write(&token_file, TOKEN).unwrap();
        let listen = free_address();
        let mut shipper = Shipper::start(scene, listen, &token_file).await;
        scene
            .install_plugin(&[
                "LOG_LEVEL=trace",
                &format!("SHIPPER=http://{listen}"),
                "SHIPPER_TOKEN_FILE=/host/tls/token",
                &format!("tls.source={}", tls.display()),
            ])
            .await;
        check("what docker run says", &use_all(scene, &shipper).await);
        for path in ["/metrics", "/healthz", "/readyz", "/api/ledger"] {
            check(path, &shipper.answer(path).await);
        }
        for command in ["check", "ledger", "dead-letter ls", "dead-letter show 1"] {
            let arguments: Vec<_> = command.split(' ').collect();
            check(command, &shipper.command(&arguments).await);
        }
        check(
            "dead letters",
            &fs::read_to_string(&shipper.dead_letters).unwrap(),
        );
        let journals = journals(scene).await;
        for text in &journals {
            check("a journal's listing", text);
        }
        let records = scene.records().await;
        let fields = records
            .iter()
            .flat_map(|record| record.fields().chain(record.tags()));
        let records = format!("{:?}", fields.collect::<Vec<_>>());
        assert!(
            records.contains("secret_key"),
            "the option is shown, masked: {records}"
        );
        check("the records", &records);
        check_table(scene).await;
        assert!(shipper.process.is_running());
        for name in ["dockerd.log", "containerd.log", "shipper.log"] {
            let log = fs::read(scene.engine.folder().join(name)).unwrap();
            check(name, &String::from_utf8_lossy(&log));
        }
    });
}

/// Returns what `cls-driver journal` shows of the plugin's journals.
async fn journals(scene: &Scene) -> Vec<String> {
    let journal = |arguments: &[&str]| {
        let mut command = scene.engine.command(root().join("scripts/plugin.sh"));
        command.arg("journal").args(arguments);
        command
    };
    let list = said(journal(&["ls"])).await;
    let mut all = vec![list.clone(), said(journal(&["verify"])).await];
    // Short, as it shows them.
    let is_id = |word: &&str| word.len() == 12 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    for id in list.split_whitespace().filter(is_id) {
        all.push(said(journal(&["show", id])).await);
    }
    assert!(all.len() > 2, "journals are kept: {list}");
    all
}

/// The driver's table holds the options of containers that run, as the engine's own files do: for its
/// owner alone.
async fn check_table(scene: &Scene) {
    let plugin = ["plugin", "inspect", "-f", "{{.Id}}", PLUGIN];
    let folder = scene.engine.folder().join("data/plugins");
    let state = folder
        .join(scene.docker(plugin).await)
        .join("propagated-mount/state");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    let mut found = 0;
    for entry in fs::read_dir(&state).unwrap() {
        let stream = entry.unwrap().path();
        if !stream.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&stream).unwrap() {
            let file = entry.unwrap().path();
            let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
            assert_eq!(mode(&file), 0o600, "{}", file.display());
            let has_key = [OTHER_SECRET_KEY, WRONG_KEY]
                .iter()
                .any(|key| text.contains(key));
            let name = file.file_name().unwrap().to_str().unwrap();
            assert!(!has_key || name == "meta.json", "{name}");
            found += u32::from(has_key);
            assert!(
                !text.contains(TOKEN) && !text.contains(SECRET_KEY),
                "{name}"
            );
        }
    }
    assert!(found > 0, "the search finds what is there");
    assert!(everything_in(&state).unwrap().contains("ContainerID"));
}
