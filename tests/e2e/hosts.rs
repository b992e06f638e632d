//! Hosts in networks of their own: three drivers, each with a certificate, against one shipper and
//! against two; shippers die and come back, a host's cable is pulled.
//!
//! Method: real processes in network namespaces; the certificates are made by README's commands. A
//! pulled cable is silence: no reset tells anybody. tests/cases/hosts.rs has more over loopback.

use crate::certificates::Certificates;
use crate::net::{Net, in_net};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use world::fleet::{Cloud, DEADLINE, Writing, mean_share, shipper, wait};
use world::nodes::{Driver, Shipper, Site};
use world::oracle::Report;
use world::processes::wait_until;
use world::turn::turn;

/// The name of all shippers, as README has it.
const NAME: &str = "shipper.example";
/// The names of the hosts; README makes a certificate for the first one.
const HOSTS: [&str; 3] = ["web-1", "web-2", "web-3"];
/// For whom certificates are made besides those that README makes.
const SIGNED: [&str; 4] = ["web-2", "web-3", "shipper-1.example", "shipper-2.example"];
/// Most of what a host may take to go on with another shipper.
const FAILOVER_MAX: Duration = Duration::from_secs(2);
/// Time within which a dead peer is found, and some for the machine.
const SILENCE_MAX: Duration = Duration::from_secs(22);
/// Age limit of calls, and the same with some time for the machine.
const AGE_MAX_S: u64 = 4;
const AGE_MAX: Duration = Duration::from_secs(AGE_MAX_S);
/// What share of three hosts a shipper has in the mean over four ages. Each host changes sides when a
/// stay of 0.5 to 4 s is over, on its own: it is at one side for 0.50 of the time, with a standard
/// deviation of 0.09 (60,000 simulated hosts). By Chernoff's bound over that distribution, the mean
/// of three is outside of this with a chance of 7e-9.
const SHARES: std::ops::Range<f64> = 0.2..0.8;
const SPREAD_MAX: Duration = Duration::from_secs(AGE_MAX_S + 2);

/// Starts a shipper of a name that takes hosts with certificates only.
async fn start_shipper(
    certificates: &Certificates,
    cloud: &Cloud,
    site: &Site,
    name: &str,
    age_max_s: u64,
) -> Shipper {
    let listen = format!(
        "tcp = \"{address}:9463\"\nconnection_age_max_s = {age_max_s}\n[listen.tls]\n\
         cert_file = \"{cert}\"\nkey_file = \"{key}\"\nclient_ca_file = \"{ca}\"",
        address = site.address,
        cert = certificates.path(&format!("{name}.pem")).display(),
        key = certificates.path(&format!("{name}.key")).display(),
        ca = certificates.path("ca.pem").display(),
    );
    let tenants = "[[tenants]]\nname = \"web\"\ncertificate = \"web-*\"\nhosts = [\"web-*\"]";
    let mut settings = cloud.shipper(&listen, tenants);
    settings.netns = Some(site.clone());
    shipper(settings).await
}

/// Starts a host's driver.
async fn start_driver(
    certificates: &Certificates,
    name: &str,
    site: &Site,
    endpoints: &str,
) -> Driver {
    let path = |file: &str| certificates.path(file).display().to_string();
    let (ca, cert, key) = (
        path("ca.pem"),
        path(&format!("{name}.pem")),
        path(&format!("{name}.key")),
    );
    let settings = [
        ("HOST_NAME", name),
        ("SHIPPER", endpoints),
        ("SHIPPER_CA_FILE", ca.as_str()),
        ("SHIPPER_CERT_FILE", cert.as_str()),
        ("SHIPPER_KEY_FILE", key.as_str()),
    ];
    let started = Driver::start_in(Some(&site.netns), &settings).await;
    started.unwrap_or_else(|error| panic!("{error:#}"))
}

async fn host_count(shipper: &Shipper) -> u64 {
    shipper.metric("cls_shipper_hosts").await.unwrap_or(0)
}

/// Returns what all nodes have written, for a test that fails.
fn logs(drivers: &[Driver], shippers: &[Shipper]) -> String {
    let shippers = shippers.iter().map(Shipper::log);
    let logs: Vec<_> = drivers.iter().map(Driver::log).chain(shippers).collect();
    logs.join("\n---\n")
}

/// Returns the longest time between two uploads of a host, of those from `from` to `to`.
fn longest_gap(cloud: &Cloud, host: &str, from: Instant, to: Instant) -> Duration {
    let arrivals = cloud.arrivals().into_iter();
    let times = arrivals
        .filter(|arrival| arrival.host == host)
        .map(|one| one.at);
    let within = times.filter(|at| (from..to).contains(at));
    let all: Vec<_> = [from].into_iter().chain(within).chain([to]).collect();
    let gaps = all.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or_default()
}

/// Returns whether every line of a script came once.
fn is_exact(report: &Report, script: &str) -> bool {
    report.counts[script].iter().all(|&count| count == 1)
}

#[test]
fn a_host_whose_cable_is_pulled_is_alone_and_catches_up() {
    in_net(async |net| {
        const CUT: Duration = Duration::from_secs(30);
        let certificates = Certificates::make(&SIGNED).await;
        let cloud = Cloud::start_at(Net::own_address()).await;
        let at = net.site(10);
        let shipper = start_shipper(&certificates, &cloud, &at, NAME, 0).await;
        let mut drivers = Vec::new();
        let mut writing = Writing::new();
        for (number, host) in (1..).zip(HOSTS) {
            let site = net.site(number);
            Net::set_names(&site, &[(NAME, at.address)]);
            let endpoint = format!("https://{NAME}:9463");
            let mut driver = start_driver(&certificates, host, &site, &endpoint).await;
            writing
                .start(&mut driver, &format!("of-{host}"), 4_000, 100)
                .await;
            drivers.push(driver);
        }
        for host in HOSTS {
            cloud.arrival(|arrival| arrival.host == host).await;
        }
        net.set_link(1, false);
        let cut = Instant::now();
        let is_noticed =
            async || drivers[0].log().contains("lost a shipper") && host_count(&shipper).await == 2;
        let waited = wait_until("both sides to notice", DEADLINE, is_noticed).await;
        let noticed = cut.elapsed();
        if let Err(error) = waited {
            let hosts = host_count(&shipper).await;
            let logs = logs(&drivers, std::slice::from_ref(&shipper));
            panic!("{error}: the shipper has {hosts} hosts\n{logs}");
        }
        sleep(CUT.saturating_sub(noticed)).await;
        let mended = Instant::now();
        net.set_link(1, true);
        let others = HOSTS[1..]
            .iter()
            .map(|host| longest_gap(&cloud, host, cut, mended));
        let others = others.max().unwrap_or_default();
        // What was on its way when the cable was pulled may have arrived.
        let silent = cut + Duration::from_secs(1);
        let own = cloud.arrivals().into_iter();
        let own = own.filter(|one| one.host == HOSTS[0] && one.at > silent && one.at < mended);
        assert_eq!(own.count(), 0);
        let is_back =
            |arrival: &world::fleet::Arrival| arrival.host == HOSTS[0] && arrival.at > mended;
        let back = cloud.arrival(is_back).await - mended;
        let _pipes = writing.finish().await;
        let report = cloud.settle(&writing.scripts).await;
        eprintln!(
            "one of three hosts silent for {CUT:?}: noticed after {noticed:?}, longest gap in the \
             others' uploads {others:?}, its own go on {back:?} after the end; {report}"
        );
        assert!(
            report.is_at_least_once(),
            "{report}{}",
            logs(&drivers, std::slice::from_ref(&shipper))
        );
        assert!(
            HOSTS[1..]
                .iter()
                .all(|host| is_exact(&report, &format!("of-{host}")))
        );
        assert!(noticed < SILENCE_MAX, "{noticed:?}");
        assert!(others < Duration::from_secs(3), "{others:?}");
        assert!(back < Duration::from_secs(6), "{back:?}");
    });
}

/// Three hosts and two shippers of these names: the hosts spread, one shipper dies and comes back.
fn check_two_shippers(names: [&'static str; 2], endpoints: &'static str) {
    in_net(async move |net| {
        let _turn = turn().await;
        let certificates = Certificates::make(&SIGNED).await;
        let cloud = Cloud::start_at(Net::own_address()).await;
        let at = [net.site(10), net.site(11)];
        let mut shippers = [
            start_shipper(&certificates, &cloud, &at[0], names[0], AGE_MAX_S).await,
            start_shipper(&certificates, &cloud, &at[1], names[1], AGE_MAX_S).await,
        ];
        let mut drivers = Vec::new();
        let mut writing = Writing::new();
        for (number, host) in (1..).zip(HOSTS) {
            let site = net.site(number);
            let known = [(names[0], at[0].address), (names[1], at[1].address)];
            Net::set_names(&site, &known);
            let mut driver = start_driver(&certificates, host, &site, endpoints).await;
            writing
                .start(&mut driver, &format!("of-{host}"), 8_000, 250)
                .await;
            drivers.push(driver);
        }
        for host in HOSTS {
            cloud.arrival(|arrival| arrival.host == host).await;
        }
        let began = Instant::now();
        let [first, second] = &shippers;
        let both = async || host_count(first).await > 0 && host_count(second).await > 0;
        wait("hosts on both", &logs(&drivers, &shippers), both).await;
        let spread = began.elapsed();
        let killed = Instant::now();
        shippers[0].kill().unwrap();
        let [_, second] = &shippers;
        let all = async || host_count(second).await == 3;
        wait("all hosts on the second", &logs(&drivers, &shippers), all).await;
        sleep(FAILOVER_MAX).await;
        let gap = |host: &&str| longest_gap(&cloud, host, killed, Instant::now());
        let gap = HOSTS.iter().map(gap).max().unwrap_or_default();
        shippers[0].up().await.unwrap();
        let up = Instant::now();
        let [first, second] = &shippers;
        let both = async || host_count(first).await > 0 && host_count(second).await > 0;
        wait("hosts on both again", &logs(&drivers, &shippers), both).await;
        let again = up.elapsed();
        sleep((AGE_MAX * 3 / 2).saturating_sub(again)).await;
        let share = mean_share([first, second], AGE_MAX * 4).await;
        let _pipes = writing.finish().await;
        let report = cloud.settle(&writing.scripts).await;
        eprintln!(
            "three hosts, two shippers, age limit {AGE_MAX_S} s: on both after {spread:?}; one is \
             killed: at most {gap:?} without an upload; on both {again:?} after it is back, and the \
             first one then has a share of {share:.2} of them in the mean; {report}"
        );
        assert!(
            SHARES.contains(&share),
            "{share}\n{}",
            logs(&drivers, &shippers)
        );
        let logs = logs(&drivers, &shippers);
        assert!(report.is_at_least_once(), "{report}{logs}");
        assert!(!logs.contains("no shipper can be reached"), "{logs}");
        assert!(gap < FAILOVER_MAX, "{gap:?}\n{logs}");
        assert!(
            spread < SPREAD_MAX && again < SPREAD_MAX,
            "{spread:?}, {again:?}\n{logs}"
        );
    });
}

#[test]
fn hosts_spread_over_two_shippers_behind_one_name() {
    check_two_shippers([NAME, NAME], "https://shipper.example:9463");
}

#[test]
fn hosts_spread_over_two_shippers_that_are_listed() {
    let endpoints = "https://shipper-1.example:9463,https://shipper-2.example:9463";
    check_two_shippers(["shipper-1.example", "shipper-2.example"], endpoints);
}
