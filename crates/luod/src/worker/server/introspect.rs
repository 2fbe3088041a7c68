//! What every Varlink service answers: who it is, and what its interfaces are.

use luo::protocol::{MANAGER, MANAGER_IDL, SESSION, SESSION_IDL};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{Pending, Reply};

const SERVICE: &str = "org.varlink.service";
const SERVICE_IDL: &str = include_str!("org.varlink.service.varlink");

/// A call whose parameters are not read yet.
#[derive(Debug, Deserialize)]
pub(super) struct Call<'a> {
    #[serde(borrow)]
    pub(super) method: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    parameters: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) more: bool,
    #[serde(default)]
    pub(super) oneway: bool,
}

impl<'a> Call<'a> {
    pub(super) fn read(text: &'a [u8]) -> Result<Self, Reply> {
        serde_json::from_slice(text).map_err(|error| {
            Reply::service_error("InvalidParameter", "parameter", &format!("the call: {error}"))
        })
    }

    pub(super) fn parameters<P: DeserializeOwned>(&self) -> Result<P, Reply> {
        let text = self.parameters.map_or("{}", RawValue::get);
        let text = if text == "null" { "{}" } else { text };
        serde_json::from_str(text).map_err(|error| {
            Reply::service_error("InvalidParameter", "parameter", &error.to_string())
        })
    }
}

#[derive(Debug, Deserialize)]
struct Describe {
    interface: String,
}

/// Answers the calls that every service has; `None` for others.
pub(super) fn answer(call: &Call<'_>) -> Option<Reply> {
    let method = call.method.strip_prefix(SERVICE)?.strip_prefix('.')?;
    Some(match method {
        "GetInfo" => Reply::new(&serde_json::json!({
            "vendor": "luo",
            "product": "luod",
            "version": env!("CARGO_PKG_VERSION"),
            "url": "https://varlink.org",
            "interfaces": [SERVICE, MANAGER, SESSION],
        })),
        "GetInterfaceDescription" => match call.parameters::<Describe>() {
            Ok(Describe { interface }) => {
                let text = match interface.as_str() {
                    SERVICE => Some(SERVICE_IDL),
                    MANAGER => Some(MANAGER_IDL),
                    SESSION => Some(SESSION_IDL),
                    _ => None,
                };
                match text {
                    Some(text) => Reply::new(&serde_json::json!({ "description": text })),
                    None => Reply::service_error("InterfaceNotFound", "interface", &interface),
                }
            }
            Err(reply) => reply,
        },
        _ => Reply::service_error("MethodNotFound", "method", &call.method),
    })
}

/// The answer to a method that is not there.
pub(super) fn unknown(call: &Call<'_>) -> Pending {
    let method = &call.method;
    let known = [MANAGER, SESSION]
        .iter()
        .any(|interface| method.strip_prefix(interface).is_some_and(|rest| rest.starts_with('.')));
    let interface = method.rsplit_once('.').map_or("", |(interface, _)| interface);
    Pending::Ready(if known {
        Reply::service_error("MethodNotFound", "method", method)
    } else {
        Reply::service_error("InterfaceNotFound", "interface", interface)
    })
}
