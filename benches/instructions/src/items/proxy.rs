//! What the proxy does with a request's head before any I/O.

use super::Item;
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use keyway_proxy::Config;
use keyway_proxy::bench::{Routes, prepare_request};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;

const CALLS: u64 = 1000;
/// As many routes as a service has: the last one takes what is asked for.
const CONFIG: &str = r#"
identity: { cert: orders.crt, key: orders.key, ca: ca.crt }
bridge: { endpoints: ["https://127.0.0.1:1"], state_dir: state }
listeners:
  - name: main
    bind: 127.0.0.1:0
    upstream: http://127.0.0.1:1
    routes:
      - { match: { path: "/health", methods: [GET] }, mode: pass }
      - { match: { path: "/static/**" }, mode: pass }
      - { match: { path: "/invoices/**" }, keyring: payments/default, domain: invoices, mode: body }
      - { match: { path: "/tenants/*/objects/**" }, keyring: payments/default, domain: orders, mode: body }
      - { match: { path: "/objects/**" }, keyring: payments/default, domain: orders, mode: body }
"#;

pub(super) fn items() -> Vec<Item> {
    let find = |name: &str, path: &'static str| {
        Item::new(name, CALLS, move || {
            let routes = routes();
            Box::new(move || {
                assert!(
                    routes.finds(&Method::GET, "objects.internal", black_box(path)),
                    "the last route takes it"
                );
            })
        })
    };
    vec![
        find("proxy/route find, plain path", "/objects/2026/11/order-4711.json"),
        find("proxy/route find, escaped path", "/objects/2026/11/order%204711%2Bcopy.json"),
        Item::new("proxy/header preparation", CALLS, || {
            let (headers, uri) = (headers(), Uri::from_static("/objects/2026/11/order-4711.json"));
            let upstream = HeaderValue::from_static("objects.internal:9000");
            // The copy that each call needs is counted with it.
            Box::new(move || {
                let mut headers = headers.clone();
                prepare_request(black_box(&mut headers), &uri, Version::HTTP_11, &upstream);
                black_box(headers);
            })
        }),
    ]
}

fn routes() -> Routes {
    let config = Config::parse(Path::new("proxy.yaml"), CONFIG, &BTreeMap::new());
    let config = config.expect("a good configuration");
    Routes::build(&config).expect("a good configuration")
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (HOST, "objects.internal"),
        (USER_AGENT, "orders/3.2 (linux; x86_64)"),
        (ACCEPT, "application/json"),
        (CONTENT_TYPE, "application/json"),
        (CONNECTION, "keep-alive"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("x-request-id", HeaderValue::from_static("01JD8Z5T3QW6K9X2M4N7P0R1S5"));
    headers
}
