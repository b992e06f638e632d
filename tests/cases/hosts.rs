//! Several hosts and several shippers: a host whose shipper dies goes on with the next one, hosts
//! spread over the shippers there are, and a host that is cut off is cut off alone.
//!
//! Method: real processes on loopback TCP; a link that can be cut stands before one of the hosts.

use crate::fleet::{Cloud, Writing, driver, mean_share, shipper, wait};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use world::nodes::{Driver, Shipper};
use world::processes::free_address;

const ANYONE: &str = "[[tenants]]\nname = \"any\"\nanyone = true";
/// Most of what a host may take to go on with another shipper, on a machine that is shared.
const FAILOVER_MAX: Duration = Duration::from_secs(2);

/// Starts a shipper on TCP and returns its endpoint, too.
async fn listening(cloud: &Cloud, age_max_s: u64) -> (Shipper, String) {
    let address = free_address().unwrap();
    let listen = format!("tcp = \"{address}\"\nconnection_age_max_s = {age_max_s}");
    let shipper = shipper(cloud.shipper(&listen, ANYONE)).await;
    (shipper, format!("http://{address}"))
}

async fn hosts(shipper: &Shipper) -> u64 {
    shipper.metric("cls_shipper_hosts").await.unwrap_or(0)
}

/// Returns what all nodes have written, for a case that fails.
fn logs(drivers: &[Driver], shippers: &[&Shipper]) -> String {
    let drivers = drivers.iter().map(Driver::log);
    let shippers = shippers.iter().map(|shipper| shipper.log());
    drivers.chain(shippers).collect::<Vec<_>>().join("\n---\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_shipper_dies_goes_on_with_the_next_one() {
    let cloud = Cloud::start().await;
    let (mut first, first_at) = listening(&cloud, 0).await;
    let (second, second_at) = listening(&cloud, 0).await;
    let mut drivers = [driver("host-1", &format!("{first_at},{second_at}"), &[]).await];
    let mut writing = Writing::new();
    writing.start(&mut drivers[0], "s1", 20_000, 5_000).await;
    cloud.arrival(|_| true).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(hosts(&second).await, 0);
    let seen = cloud.arrivals().len();
    first.kill().unwrap();
    let killed = Instant::now();
    wait(
        "uploads by the second",
        &logs(&drivers, &[&second]),
        async || hosts(&second).await == 1 && cloud.arrivals().len() > seen + 1,
    )
    .await;
    let took = killed.elapsed();
    let _pipes = writing.finish().await;
    let report = cloud.settle(&writing.scripts).await;
    eprintln!("uploads went on {took:?} after the shipper was killed; {report}");
    assert!(
        report.is_at_least_once(),
        "{report}{}",
        logs(&drivers, &[&second])
    );
    assert!(took < FAILOVER_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shipper_that_stops_in_good_order_repeats_nothing() {
    let cloud = Cloud::start().await;
    let (mut first, first_at) = listening(&cloud, 0).await;
    let (mut second, second_at) = listening(&cloud, 0).await;
    let mut drivers = [driver("host-1", &format!("{first_at},{second_at}"), &[]).await];
    let mut writing = Writing::new();
    writing.start(&mut drivers[0], "s1", 25_000, 5_000).await;
    cloud.arrival(|_| true).await;
    for _ in 0..2 {
        for shipper in [&mut first, &mut second] {
            sleep(Duration::from_millis(400)).await;
            shipper.stop().await.unwrap();
            shipper.up().await.unwrap();
        }
    }
    let _pipes = writing.finish().await;
    let report = cloud.settle(&writing.scripts).await;
    eprintln!("four stops in good order: {report}");
    let logs = logs(&drivers, &[&first, &second]);
    assert!(
        report.is_at_least_once() && report.duplicated == 0,
        "{report}{logs}"
    );
}

/// A host changes sides whenever a stay of 0.5 to 4 s is over, on its own, so from 1.5 ages after the
/// last moment that they share on, each shipper has half of the hosts in the mean. Over three ages,
/// one host is at the first shipper for 0.50 of the time, with a standard deviation of 0.10 (60,000
/// simulated hosts). By Chernoff's bound over that distribution, the mean of twelve is outside of 0.3
/// to 0.7 with a chance of 2e-10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_spread_over_a_shipper_that_has_come_back() {
    const HOSTS: u64 = 12;
    const AGE: Duration = Duration::from_secs(4);
    let cloud = Cloud::start().await;
    let (mut first, first_at) = listening(&cloud, AGE.as_secs()).await;
    let (second, second_at) = listening(&cloud, AGE.as_secs()).await;
    let mut drivers = Vec::new();
    let mut writing = Writing::new();
    for number in 0..HOSTS {
        let endpoints = format!("{first_at},{second_at}");
        let mut driver = driver(&format!("host-{number}"), &endpoints, &[]).await;
        writing
            .start(&mut driver, &format!("s{number}"), 2_500, 100)
            .await;
        drivers.push(driver);
    }
    cloud.arrival(|_| true).await;
    first.kill().unwrap();
    wait(
        "all on the second",
        &logs(&drivers, &[&second]),
        async || hosts(&second).await == HOSTS,
    )
    .await;
    first.up().await.unwrap();
    let began = Instant::now();
    wait(
        "hosts on both",
        &logs(&drivers, &[&first, &second]),
        async || hosts(&first).await > 0 && hosts(&second).await > 0,
    )
    .await;
    let took = began.elapsed();
    sleep((AGE * 3 / 2).saturating_sub(took)).await;
    let share = mean_share([&first, &second], AGE * 3).await;
    let _pipes = writing.finish().await;
    let report = cloud.settle(&writing.scripts).await;
    eprintln!(
        "{HOSTS} hosts, age limit {AGE:?}: the first shipper has some after {took:?}, and a share of \
         {share:.2} of them in the mean; {report}"
    );
    let logs = logs(&drivers, &[&first, &second]);
    assert!((0.3..0.7).contains(&share), "{share}\n{logs}");
    assert!(report.is_at_least_once(), "{report}{logs}");
    assert!(!logs.contains("no shipper can be reached"), "{logs}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_ends_for_its_age_loses_and_repeats_nothing() {
    let cloud = Cloud::start().await;
    let (shipper, endpoint) = listening(&cloud, 1).await;
    let mut drivers = [driver("host-1", &endpoint, &[]).await];
    let mut writing = Writing::new();
    for number in 0..4 {
        let name = format!("s{number}");
        writing.start(&mut drivers[0], &name, 12_000, 2_000).await;
    }
    let _pipes = writing.finish().await;
    let report = cloud.settle(&writing.scripts).await;
    let ended = drivers[0]
        .log()
        .matches("changing to the next shipper")
        .count();
    eprintln!("{ended} calls ended for their age of 1 s: {report}");
    let logs = logs(&drivers, &[&shipper]);
    assert!(ended >= 4, "{logs}");
    assert!(
        report.is_at_least_once() && report.duplicated == 0,
        "{report}{logs}"
    );
}

/// A TCP link that can be cut: nothing passes any more, and nobody is told.
struct Link {
    address: SocketAddr,
    is_up: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Link {
    async fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_up, state) = watch::channel(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&to).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) =
                    (near.into_split(), far.into_split());
                connections.spawn(carry(near_in, far_out, state.clone()));
                connections.spawn(carry(far_in, near_out, state.clone()));
            }
        });
        Self {
            address,
            is_up,
            _tasks: tasks,
        }
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut is_up: watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        // Errors: the link is gone, or the peer.
        if is_up.wait_for(|is_up| *is_up).await.is_err()
            || to.write_all(&buffer[..count]).await.is_err()
        {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_cut_off_is_cut_off_alone() {
    const CUT: Duration = Duration::from_secs(3);
    let cloud = Cloud::start().await;
    let (shipper, endpoint) = listening(&cloud, 0).await;
    let link = Link::start(endpoint.trim_start_matches("http://").to_owned()).await;
    let near = format!("http://{}", link.address);
    let mut drivers = [
        driver("host-1", &endpoint, &[]).await,
        driver("host-2", &near, &[]).await,
    ];
    let mut writing = Writing::new();
    for (number, driver) in drivers.iter_mut().enumerate() {
        let name = format!("s{}", number + 1);
        writing.start(driver, &name, 12_000, 2_000).await;
    }
    for host in ["host-1", "host-2"] {
        cloud.arrival(|arrival| arrival.host == host).await;
    }
    link.is_up.send_replace(false);
    let cut = Instant::now();
    sleep(CUT).await;
    link.is_up.send_replace(true);
    let mended = Instant::now();
    let settled = cut + Duration::from_millis(500);
    let during = |host: &str| -> usize {
        let all = cloud.arrivals().into_iter();
        all.filter(|one| one.host == host && one.at > settled && one.at < mended)
            .count()
    };
    let (other, own) = (during("host-1"), during("host-2"));
    let _pipes = writing.finish().await;
    let report = cloud.settle(&writing.scripts).await;
    eprintln!(
        "one of two hosts cut off for {CUT:?}: {own} of its uploads meanwhile, {other} of the \
         other's; {report}"
    );
    assert!(report.is_exact(), "{report}{}", logs(&drivers, &[&shipper]));
    assert!(own == 0 && other > 5, "{own} and {other}");
}
