//! The generator against servers that serve, and against servers that don't.

mod servers;

use super::{Connecting, Exchange, Http, IdleConnections, Plan, Sample, pace, run, run_together};
use servers::{Pki, http2, scripted, store};
use std::net::SocketAddr;
use std::time::Duration;

fn get(path: &str, body: u64) -> Exchange {
    Exchange::Get { path: path.into(), body }
}

fn put(path: &str, body: u64) -> Exchange {
    Exchange::Put { path: path.into(), body }
}

fn plan(address: SocketAddr, exchange: Exchange) -> Plan {
    Plan {
        address,
        host: "localhost".into(),
        ca: None,
        http: Http::One,
        connections: 3,
        streams: 1,
        connecting: Connecting::Once,
        exchange,
        warm_up: Duration::ZERO,
        measure: Duration::from_millis(200),
        core: None,
    }
}

/// Of requests that are all answered rightly.
#[track_caller]
fn assert_whole(sample: &Sample, body: u64) {
    assert_eq!((sample.failures, &sample.first_failure), (0, &None));
    assert!(sample.requests > 0);
    assert_eq!(sample.latency.len(), sample.requests);
    // Requests that were under way at either end have a part in it.
    assert!(sample.bytes > 0 || body == 0);
}

#[track_caller]
fn assert_failure(plan: &Plan, what: &str) {
    let sample = run(plan).unwrap();
    let first = sample.first_failure.unwrap_or_default();
    assert!(first.contains(what), "{first}");
    assert!(sample.failures > 0);
    assert_eq!(sample.requests, 0);
}

#[test]
fn http1_gets_and_puts() {
    let address = store(None);
    for size in [0, 1, 1024, 300_000] {
        assert_whole(&run(&plan(address, put("/objects/{n}", size))).unwrap(), size);
        assert_whole(&run(&plan(address, get("/objects/{n}", size))).unwrap(), size);
        assert_whole(&run(&plan(address, put("/sink/{n}", size))).unwrap(), size);
    }
}

#[test]
fn http1_with_tls() {
    let pki = Pki::new();
    let address = store(Some(&pki));
    let secured = |exchange| Plan { ca: Some(pki.ca()), ..plan(address, exchange) };
    for size in [1, 1_000_000] {
        assert_whole(&run(&secured(put("/objects/{n}", size))).unwrap(), size);
        assert_whole(&run(&secured(get("/objects/{n}", size))).unwrap(), size);
    }
    for connecting in [Connecting::Anew, Connecting::Resumed] {
        assert_whole(&run(&Plan { connecting, ..secured(get("/plain/1", 1)) }).unwrap(), 1);
    }
    // Who presents another name is not spoken to.
    let mistaken = Plan { host: "example.org".into(), ..secured(get("/plain/1", 1)) };
    assert!(run(&mistaken).is_err());
}

#[test]
fn http2_with_and_without_tls() {
    let pki = Pki::new();
    for ca in [None, Some(pki.ca())] {
        let address = http2(ca.is_some().then_some(&pki));
        let multiplexed = |exchange| Plan {
            http: Http::Two,
            streams: 5,
            connections: 2,
            ca: ca.clone(),
            ..plan(address, exchange)
        };
        for size in [0, 1000, 1_000_000] {
            assert_whole(&run(&multiplexed(get(&format!("/{size}"), size))).unwrap(), size);
            assert_whole(&run(&multiplexed(put("/", size))).unwrap(), size);
        }
        assert_failure(&multiplexed(get("/10", 11)), "a body of 10 bytes, not 11");
        assert_failure(&multiplexed(get("/fail", 0)), "status 500");
        assert_failure(&multiplexed(put("/fail", 10_000_000)), "status 500");
        assert_failure(&multiplexed(get("/cut", 1000)), "cut off");
    }
}

#[test]
fn bulk_counts_bytes_of_what_is_under_way() {
    let address = store(None);
    // No request of 100 GB comes to its end in that time.
    for exchange in [get("/plain/100000000000", 100_000_000_000), put("/sink/a", 100_000_000_000)] {
        let sample = run(&plan(address, exchange)).unwrap();
        assert_eq!((sample.requests, sample.failures), (0, 0));
        assert!(sample.bytes > 0);
        assert!(sample.elapsed >= Duration::from_millis(200));
    }
}

#[test]
fn several_plans_together() {
    let address = store(None);
    let small = plan(address, get("/plain/1024", 1024));
    let bulk = plan(address, put("/sink/a", 100_000_000_000));
    let samples = run_together(&[small.clone(), bulk]).unwrap();
    assert_whole(&samples[0], 1024);
    assert!(samples[1].bytes > 0);
    assert_eq!(samples[1].failures, 0);
    let longer = Plan { measure: Duration::from_secs(1), ..small.clone() };
    assert!(run_together(&[small, longer]).is_err());
}

#[test]
fn paced_requests_are_as_many_as_asked_for() {
    let address = store(None);
    let base = plan(address, get("/plain/100", 100));
    let paced = Plan { warm_up: Duration::from_millis(100), ..base };
    let sample = pace(&paced, 500.0).unwrap();
    assert_eq!((sample.requests, sample.failures), (100, 0));
    assert_eq!((sample.bytes, sample.latency.len()), (10_000, 100));
    let missing = Plan { exchange: get("/objects/none", 1), ..paced };
    let sample = pace(&missing, 500.0).unwrap();
    assert_eq!((sample.requests, sample.failures, sample.bytes), (0, 100, 0));
    assert!(pace(&missing, 0.0).is_err());
    assert!(pace(&missing, f64::NAN).is_err());
}

#[test]
fn wrong_answers_are_failures() {
    let address = store(None);
    assert_failure(&plan(address, get("/plain/5", 6)), "a body of 5 bytes, not 6");
    assert_failure(&plan(address, get("/objects/none", 0)), "status 404");
    let cases: [(&str, &[u8]); 5] = [
        ("status 500", b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!"),
        ("cut off after 2 bytes", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"),
        ("cut off after 2 bytes", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"),
        ("closed instead of an answer", b""),
        ("no HTTP/1 response", b"220 mail.example.org ESMTP\r\n"),
    ];
    for (what, response) in cases {
        assert_failure(&plan(scripted(response), get("/", 3)), what);
    }
}

#[test]
fn closing_politely_is_no_failure() {
    let closing = scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc");
    assert_whole(&run(&plan(closing, get("/", 3))).unwrap(), 3);
    let old = scripted(b"HTTP/1.0 200 OK\r\n\r\nabc");
    assert_whole(&run(&plan(old, get("/", 3))).unwrap(), 3);
}

#[test]
fn early_answers_to_uploads_are_failures() {
    let refusing = scripted(b"HTTP/1.1 507 Full\r\nContent-Length: 0\r\n\r\n");
    assert_failure(&plan(refusing, put("/", 1_000_000_000)), "status 507");
    let hasty = scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_failure(&plan(hasty, put("/", 1_000_000_000)), "answered after");
}

#[test]
fn plans_that_cannot_be() {
    let address = store(None);
    let exchange = get("/plain/1", 1);
    assert!(run(&Plan { streams: 2, ..plan(address, exchange.clone()) }).is_err());
    assert!(run(&Plan { connections: 0, ..plan(address, exchange.clone()) }).is_err());
    assert!(run(&Plan { core: Some(100_000), ..plan(address, exchange.clone()) }).is_err());
    assert!(run(&Plan { ca: Some("/nonexistent".into()), ..plan(address, exchange) }).is_err());
}

#[test]
fn idle_connections_are_held() {
    let pki = Pki::new();
    for ca in [None, Some(pki.ca())] {
        let address = store(ca.is_some().then_some(&pki));
        let many = Plan { connections: 1500, ca, ..plan(address, get("/plain/1", 1)) };
        let idle = IdleConnections::open(&many).unwrap();
        assert_eq!((idle.opened(), idle.lost()), (1500, 0));
    }
    let wrong = plan(store(None), get("/plain/1", 2));
    assert!(IdleConnections::open(&wrong).is_err());
}
