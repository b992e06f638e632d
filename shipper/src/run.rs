//! From a configuration file to a running process.

pub(crate) mod assemble;
pub mod config_file;
pub mod explain;
#[cfg(any(test, feature = "fuzz"))]
pub mod rehearsal;

use crate::base::chain::Chain;
use crate::base::clock::WallClock;
use crate::config::Config;
use crate::door::tls::ServerTls;
use crate::keys::store::CredentialStore;
use crate::send::client::Client;

/// Reads every file and every source of keys that a configuration names. Returns what can't be used: at
/// a start, lanes would hold for it.
pub async fn faults(config: &Config) -> Vec<String> {
    let client = Client::new(config.road.clone());
    let mut faults = Vec::new();
    faults.extend(client.http().err().map(|error| Chain(&error).to_string()));
    let tls = config.listen.tls.clone().map(ServerTls::new).transpose();
    faults.extend(tls.err().map(|error| Chain(&error).to_string()));
    let clock = WallClock::system();
    let store = CredentialStore::new(&config.credentials, &config.endpoints, &clock, &client);
    for name in config.credentials.keys() {
        let fault = store.probe(name).await.err();
        faults.extend(fault.map(|error| format!("[credentials.{name}] {}", Chain(&error))));
    }
    faults.extend(explain::faults_of_rules(config));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What holds lanes at night is better known at noon.
    #[tokio::test]
    async fn a_check_reads_what_the_configuration_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("empty"), "").unwrap();
        let pair = r#"{"secret_id":"i","secret_key":"k","expiration":1}"#;
        std::fs::write(path("expired"), pair).unwrap();
        std::fs::write(path("good"), pair.replace(":1}", ":\"\"}")).unwrap();
        let source = |name: &str| {
            let path = path(name);
            format!("[credentials.{name}]\nsource = \"file\"\npath = \"{path}\"\n")
        };
        let names = ["empty", "expired", "good", "missing"];
        let text: String = names.iter().map(|name| source(name)).collect();
        let folder_source = format!(
            "[credentials.folder]\nsource = \"file\"\npath = \"{}\"\n",
            folder.path().display()
        );
        let text = format!(
            "[upload]\nca_file = \"{}\"\n{text}{folder_source}",
            path("empty")
        );
        let config = Config::from_table(text.parse().unwrap(), std::iter::empty()).unwrap();
        let faults = faults(&config).await;
        let expected = ["ca_file", ".empty]", ".expired]", ".folder]", ".missing]"];
        assert_eq!(faults.len(), expected.len(), "{faults:?}");
        for (fault, part) in faults.iter().zip(expected) {
            assert!(fault.contains(part), "{fault}");
        }
    }
}
