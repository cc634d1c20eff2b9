//! DEKs issued and opened, as sidecars ask for them: each caller has a connection and a key of its own.

use super::bed::{Bed, KEYRING, ZONE};
use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use keyway_protocol::dek_transport::MemberKey;
use keyway_protocol::v1::fleet_client::FleetClient;
use keyway_protocol::v1::{DekResponse, IssueDekRequest, OpenDekRequest};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::Channel;

/// Of the answers, one in so many is opened (HPKE) after its time was taken. All would make the generator the bottleneck:
/// opening costs as much as sealing.
const OPEN_EVERY: u64 = 16;

/// What callers ask for, over and over.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    /// A new DEK under this version.
    Issue(u32),
    /// The DEKs behind these blocks, in turn.
    Open(Rc<[Vec<u8>]>),
    /// A call that ends at the caller's identity: what all calls pay.
    Refused,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Calls {
    /// Answers per second.
    pub(super) per_second: f64,
    /// In nanoseconds, of each call.
    pub(super) latency: Histogram<u64>,
    /// CPU time that the bridge took per call, in microseconds.
    pub(super) bridge_cpu_us: f64,
}

impl Calls {
    pub(super) fn quantile_us(&self, quantile: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a call fit 53 bits")]
        let ns = self.latency.value_at_quantile(quantile) as f64;
        ns / 1000.0
    }
}

/// One caller.
pub(super) struct Caller {
    client: FleetClient<Channel>,
    key: MemberKey,
    asked: u64,
}

impl Caller {
    pub(super) fn new(client: FleetClient<Channel>) -> Self {
        Self { client, key: MemberKey::generate(), asked: 0 }
    }

    /// Asks once; gives the answer after checking that it is one.
    pub(super) async fn ask(&mut self, what: &Ask, number: usize) -> anyhow::Result<(Duration, DekResponse)> {
        let began = Instant::now();
        let response = match what {
            Ask::Issue(version) => self.client.issue_dek(self.issue_request(*version)).await?.into_inner(),
            Ask::Open(blocks) => {
                let key_block = blocks[number % blocks.len()].clone();
                let recipient_key = self.key.public().to_vec();
                let request = OpenDekRequest { zone: ZONE.into(), key_block, recipient_key };
                self.client.open_dek(request).await?.into_inner()
            }
            Ask::Refused => {
                let refused = self.client.issue_dek(self.issue_request(1)).await;
                let code = refused.err().map(|status| status.code());
                ensure!(code == Some(Code::PermissionDenied), "a stranger was answered {code:?}");
                return Ok((began.elapsed(), DekResponse::default()));
            }
        };
        let took = began.elapsed();
        self.asked += 1;
        if self.asked % OPEN_EVERY == 1 {
            self.key.open(&response, ZONE).context("an answer does not open")?;
        }
        Ok((took, response))
    }

    fn issue_request(&self, kek_version: u32) -> IssueDekRequest {
        IssueDekRequest {
            zone: ZONE.into(),
            keyring: KEYRING.into(),
            tenant: String::new(),
            recipient_key: self.key.public().to_vec(),
            kek_version,
        }
    }
}

pub(super) async fn callers(bed: &Bed, count: usize, what: &Ask) -> anyhow::Result<Vec<Caller>> {
    let mut callers = Vec::with_capacity(count);
    for _ in 0..count {
        let client = if matches!(what, Ask::Refused) { bed.stranger().await? } else { bed.member().await? };
        callers.push(Caller::new(client));
    }
    Ok(callers)
}

/// All callers ask as fast as they are answered, for `warm_up` and then for `measure`.
pub(super) async fn load(
    bed: &Bed,
    callers: &mut [Caller],
    what: &Ask,
    warm_up: Duration,
    measure: Duration,
) -> anyhow::Result<Calls> {
    let next = Cell::new(0);
    let begin = Instant::now() + warm_up;
    let end = begin + measure;
    let latency = RefCell::new(histogram()?);
    let cpu_before = RefCell::new(None);
    let work = callers.iter_mut().map(|caller| async {
        while Instant::now() < end {
            let number = next.replace(next.get() + 1);
            if Instant::now() >= begin && cpu_before.borrow().is_none() {
                cpu_before.replace(Some((Instant::now(), bed.meter().read())));
            }
            let (took, _) = caller.ask(what, number).await.with_context(|| bed.bridge.log())?;
            if cpu_before.borrow().is_some() {
                latency.borrow_mut().saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            }
        }
        anyhow::Ok(())
    });
    try_join_all(work).await?;
    let (began, cpu) =
        cpu_before.into_inner().context("nothing was measured: the calls take longer than the round")?;
    let (elapsed, cpu) = (began.elapsed().as_secs_f64(), bed.cpu_s_since(&cpu));
    let latency = latency.into_inner();
    #[expect(clippy::cast_precision_loss, reason = "calls of a few seconds fit 53 bits")]
    let calls = latency.len() as f64;
    Ok(Calls { per_second: calls / elapsed, bridge_cpu_us: cpu * 1e6 / calls, latency })
}

/// Issues this many DEKs, from all callers at once; gives their blocks.
pub(super) async fn issue(
    callers: &mut [Caller],
    version: u32,
    count: usize,
) -> anyhow::Result<Vec<Vec<u8>>> {
    let left = Cell::new(count);
    let blocks = RefCell::new(Vec::with_capacity(count));
    let what = Ask::Issue(version);
    let work = callers.iter_mut().map(|caller| async {
        while let Some(rest) = left.get().checked_sub(1) {
            left.set(rest);
            let (_, response) = caller.ask(&what, rest).await?;
            blocks.borrow_mut().push(response.key_block);
        }
        anyhow::Ok(())
    });
    try_join_all(work).await?;
    Ok(blocks.into_inner())
}

/// Of nanoseconds, up to a minute.
pub(super) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_max(60_000_000_000, 3)?)
}
