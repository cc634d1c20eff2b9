//! The context of a route: what is bound into its envelopes.

use crate::error::ProxyError;
use http::{HeaderMap, HeaderName};
use keyway_envelope::stream::{StreamContext, Way};
use keyway_envelope::{Context, ContextDigest, Profile};

/// Longest tenant name, in bytes. It becomes part of a key's identity, so it is bounded.
const TENANT_MAX: usize = 128;

/// Where a route's tenant comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TenantSource {
    /// A header of each request. A request without it is refused.
    Header(HeaderName),
    /// Always the same.
    Value(String),
}

impl TenantSource {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("header", name)) => HeaderName::from_bytes(name.as_bytes())
                .map(Self::Header)
                .map_err(|_| format!("{name:?} is no header name")),
            Some(("value", value)) if is_tenant(value) => Ok(Self::Value(value.to_owned())),
            _ => Err(format!("{text:?} must be header:NAME or value:NAME")),
        }
    }
}

/// Zone, domain and where the tenant comes from. Without a tenant the digest is computed once.
#[derive(Debug)]
pub(crate) struct RouteContext {
    zone: String,
    domain: String,
    tenant: Option<TenantSource>,
    fixed: Option<ContextDigest>,
}

/// The context of one request.
#[derive(Clone, Debug)]
pub(crate) struct RequestContext {
    pub(crate) digest: ContextDigest,
    /// Empty for none.
    pub(crate) tenant: Box<str>,
}

impl RouteContext {
    pub(crate) fn new(zone: &str, domain: &str, tenant: Option<TenantSource>) -> Self {
        let fixed = match &tenant {
            None => Some(Context::object(zone, None, domain).digest()),
            Some(TenantSource::Value(value)) => Some(Context::object(zone, Some(value), domain).digest()),
            Some(TenantSource::Header(_)) => None,
        };
        Self { zone: zone.to_owned(), domain: domain.to_owned(), tenant, fixed }
    }

    /// The context of a field of a document: `path` is its place (RFC 6901, with `*` for indices).
    pub(crate) fn field(&self, request: &RequestContext, path: &str) -> ContextDigest {
        let tenant = (!request.tenant.is_empty()).then_some(&*request.tenant);
        let object = Context::object(&self.zone, tenant, &self.domain);
        Context { profile: Profile::Field, field: Some(path), ..object }.digest()
    }

    /// The context of one direction of a connection.
    pub(crate) fn stream(&self, request: &RequestContext, way: Way) -> StreamContext {
        StreamContext {
            zone: self.zone.clone(),
            tenant: (!request.tenant.is_empty()).then(|| request.tenant.to_string()),
            domain: self.domain.clone(),
            way,
        }
    }

    /// # Errors
    /// [`ProxyError::Tenant`] if the request has no usable tenant header.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Result<RequestContext, ProxyError> {
        match (&self.tenant, self.fixed) {
            (Some(TenantSource::Header(name)), _) => {
                let mut values = headers.get_all(name).iter();
                let tenant = match (values.next(), values.next()) {
                    (Some(value), None) => value.to_str().ok().filter(|tenant| is_tenant(tenant)),
                    _ => None,
                }
                .ok_or_else(|| ProxyError::Tenant(name.clone()))?;
                let digest = Context::object(&self.zone, Some(tenant), &self.domain).digest();
                Ok(RequestContext { digest, tenant: tenant.into() })
            }
            (Some(TenantSource::Value(value)), Some(digest)) => {
                Ok(RequestContext { digest, tenant: value.as_str().into() })
            }
            (_, digest) => Ok(RequestContext {
                digest: digest.unwrap_or_else(|| Context::object(&self.zone, None, &self.domain).digest()),
                tenant: "".into(),
            }),
        }
    }
}

fn is_tenant(text: &str) -> bool {
    !text.is_empty() && text.len() <= TENANT_MAX && text.bytes().all(|byte| byte.is_ascii_graphic())
}
