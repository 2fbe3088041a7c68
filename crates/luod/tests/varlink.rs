//! luod as a Varlink service, seen by somebody else's implementation of it.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use common::{Luod, PATIENCE, assert_connected, pipe};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zlink::Call;
use zlink::idl::{Interface, Type};
use zlink::tokio::unix::{Connection, connect};
use zlink::varlink_service::Proxy;

/// Runs somebody's asynchronous client, for no longer than anything may take.
fn run<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, client).await.expect("in time") })
}

/// A method and its parameters.
#[derive(Debug, Serialize)]
struct Method {
    method: &'static str,
    #[serde(skip_serializing_if = "Value::is_null")]
    parameters: Value,
}

/// An error of one of luod's interfaces.
#[derive(Debug, Deserialize)]
struct Failed {
    error: String,
}

/// Calls a method; gives the reply's parameters and descriptors, or the error's name.
async fn call(
    connection: &mut Connection,
    method: &'static str,
    parameters: Value,
    files: Vec<OwnedFd>,
) -> Result<(Value, Vec<OwnedFd>), String> {
    let call = Call::new(Method { method, parameters });
    match connection.call_method::<_, Value, Failed>(&call, files).await {
        Ok((Ok(reply), files)) => Ok((reply.into_parameters().unwrap_or(json!({})), files)),
        Ok((Err(error), _)) => Err(error.error),
        // Those that every service has.
        Err(zlink::Error::VarlinkService(error)) => Err(format!("{error:?}")),
        Err(error) => panic!("{method}: {error}"),
    }
}

/// A connection of a session, as a client makes it that knows the protocol only.
async fn connect_session(descriptor: &OwnedFd) -> Connection {
    let (ours, theirs) = UnixStream::pair().unwrap();
    luo::wire::send(descriptor.as_fd(), luo::protocol::CONNECT_PACKET, &[theirs.as_fd()]).unwrap();
    speak(ours)
}

fn speak(ours: UnixStream) -> Connection {
    ours.set_nonblocking(true).unwrap();
    let stream = tokio::net::UnixStream::from_std(ours).unwrap();
    Connection::new(zlink::tokio::unix::Stream::try_from(stream).unwrap())
}

/// Whether a reply has what its definition says, and nothing else.
fn assert_as_defined(interface: &Interface<'_>, method: &str, reply: &Value) {
    let (_, name) = method.rsplit_once('.').unwrap();
    let definition = interface.methods().find(|method| method.name() == name).expect("defined");
    let reply = reply.as_object().expect("an object");
    for output in definition.outputs() {
        let optional = matches!(output.ty(), Type::Optional(_));
        assert!(
            optional || reply.contains_key(output.name().as_str()),
            "{method}: no {}",
            output.name()
        );
    }
    for name in reply.keys() {
        let defined = definition.outputs().any(|output| output.name().as_str() == name);
        assert!(defined, "{method}: {name} is not defined");
    }
}

#[test]
fn the_service_says_what_it_is_and_its_definitions_are_valid() {
    let luod = Luod::start();
    run(async {
        let mut connection = connect(luod.socket()).await.unwrap();
        let info = connection.owned_get_info().await.unwrap().unwrap();
        assert_eq!(info.product, "luod");
        let interfaces: Vec<String> = info.interfaces.iter().map(ToString::to_string).collect();
        assert_eq!(interfaces, ["org.varlink.service", "io.luo", "io.luo.Session"]);
        for interface in &info.interfaces {
            let name = interface.to_string();
            let name = zlink::names::InterfaceName::try_from(name.as_str()).unwrap();
            let description =
                connection.get_interface_description(name.clone()).await.unwrap().unwrap();
            let parsed = description.parse().unwrap();
            assert_eq!(*parsed.name(), name);
            assert!(parsed.methods().next().is_some());
        }
        let unknown = zlink::names::InterfaceName::try_from("no.such").unwrap();
        let error = match connection.get_interface_description(unknown).await {
            Ok(answer) => format!("{:?}", answer.expect_err("there is none")),
            Err(error) => format!("{error:?}"),
        };
        assert!(error.contains("InterfaceNotFound") && error.contains("no.such"), "{error}");
    });
}

#[test]
fn replies_are_as_they_are_defined() {
    let luod = Luod::start();
    let text = luo::protocol::MANAGER_IDL;
    let manager = Interface::try_from(text).unwrap();
    let session = Interface::try_from(luo::protocol::SESSION_IDL).unwrap();
    run(async {
        let mut connection = connect(luod.socket()).await.unwrap();
        let parameters = json!({"name": "shop", "colour": "red"});
        let (reply, mut files) =
            call(&mut connection, "io.luo.CreateSession", parameters, vec![]).await.unwrap();
        assert_as_defined(&manager, "io.luo.CreateSession", &reply);
        assert_eq!(files.len(), 1);
        let descriptor = files.remove(0);
        let mut shop = connect_session(&descriptor).await;
        let (reader, writer) = pipe();
        let given = vec![reader, writer.try_clone().unwrap()];
        let parameters = json!({"count": 2, "tokens": [1, 2]});
        let method = "io.luo.Session.Preserve";
        let (reply, _) = call(&mut shop, method, parameters, given).await.unwrap();
        assert_as_defined(&session, method, &reply);
        assert_eq!(reply["tokens"], json!([1, 2]));
        for method in ["io.luo.Session.GetInfo", "io.luo.Session.Prepare", "io.luo.Session.Cancel"]
        {
            // Without parameters, and with those that are none.
            let (reply, _) = call(&mut shop, method, Value::Null, vec![]).await.unwrap();
            assert_as_defined(&session, method, &reply);
        }
        for method in [
            "io.luo.GetStatus",
            "io.luo.ListSessions",
            "io.luo.ListFiles",
            "io.luo.Rehearse",
            "io.luo.Prepare",
            "io.luo.Freeze",
            "io.luo.GetHandover",
            "io.luo.Cancel",
        ] {
            let (reply, files) = call(&mut connection, method, json!({}), vec![]).await.unwrap();
            assert_as_defined(&manager, method, &reply);
            assert_eq!(files.len(), usize::from(method == "io.luo.GetHandover"), "{method}");
        }
        drop((shop, descriptor));
        luod.wait("nobody holds it", || !luod.manager().sessions().unwrap()[0].held);
        let parameters = json!({"name": "shop"});
        let (_, files) =
            call(&mut connection, "io.luo.ClaimSession", parameters, vec![]).await.unwrap();
        let mut shop = connect_session(&files[0]).await;
        let parameters = json!({"tokens": [1, 7]});
        let method = "io.luo.Session.Retrieve";
        let (reply, files) = call(&mut shop, method, parameters, vec![]).await.unwrap();
        assert_as_defined(&session, method, &reply);
        assert_eq!((&reply["tokens"], files.len()), (&json!([1]), 1));
        assert_eq!(reply["refused"][0]["errno"], "ENOENT");
        assert_connected(&files[0], &writer, b"x");
    });
}

#[test]
fn a_sessions_first_connection_may_come_with_the_call_for_it() {
    let luod = Luod::start();
    run(async {
        let mut connection = connect(luod.socket()).await.unwrap();
        let mut held = None;
        for method in ["io.luo.CreateSession", "io.luo.ClaimSession"] {
            drop(held.take());
            luod.wait("nobody holds it", || {
                luod.manager().sessions().unwrap().iter().all(|session| !session.held)
            });
            for (what, files) in [
                ("a pipe", vec![pipe().0]),
                ("two", vec![UnixStream::pair().unwrap().0.into(), pipe().0]),
            ] {
                let parameters = json!({"name": "shop"});
                let refused = call(&mut connection, method, parameters, files).await;
                assert_eq!(refused.unwrap_err(), "io.luo.Failed", "{what}");
            }
            let (ours, theirs) = UnixStream::pair().unwrap();
            let parameters = json!({"name": "shop"});
            let (_, files) =
                call(&mut connection, method, parameters, vec![theirs.into()]).await.unwrap();
            let mut shop = speak(ours);
            let method = "io.luo.Session.GetInfo";
            let (reply, _) = call(&mut shop, method, Value::Null, vec![]).await.unwrap();
            assert_eq!(reply["name"], "shop");
            held = Some((shop, files));
        }
        // It ends with the session.
        let (mut shop, _files) = held.unwrap();
        luod.manager().release("shop").unwrap();
        let call = Call::new(Method { method: "io.luo.Session.GetInfo", parameters: Value::Null });
        assert!(shop.call_method::<_, Value, Failed>(&call, vec![]).await.is_err());
    });
}

#[test]
fn what_is_not_there_has_the_errors_of_every_service() {
    let luod = Luod::start();
    run(async {
        let mut connection = connect(luod.socket()).await.unwrap();
        for (method, parameters, expected) in [
            ("no.such.Method", json!({}), "InterfaceNotFound"),
            ("nonsense", json!({}), "InterfaceNotFound"),
            ("io.luo.Nothing", json!({}), "MethodNotFound"),
            ("io.luo.", json!({}), "MethodNotFound"),
            ("org.varlink.service.Nothing", json!({}), "MethodNotFound"),
            // It is served on a session's descriptor.
            ("io.luo.Session.GetInfo", json!({}), "MethodNotFound"),
            ("io.luo.CreateSession", json!({}), "InvalidParameter"),
            ("io.luo.CreateSession", json!({"name": 7}), "InvalidParameter"),
            ("io.luo.Watch", json!({}), "ExpectedMore"),
            ("io.luo.Participate", json!({"name": "db"}), "ExpectedMore"),
        ] {
            let error = call(&mut connection, method, parameters, vec![]).await.unwrap_err();
            assert!(error.contains(expected), "{method}: {error}");
        }
        let error =
            call(&mut connection, "io.luo.ReleaseSession", json!({"name": "none"}), vec![]).await;
        assert_eq!(error.unwrap_err(), "io.luo.Failed");
    });
}

#[test]
fn parameters_may_be_null_and_calls_may_want_no_reply() {
    let luod = Luod::start();
    run(async {
        let mut connection = connect(luod.socket()).await.unwrap();
        let create = Method { method: "io.luo.GetStatus", parameters: Value::Null };
        let oneway = Call::new(create).set_oneway(true);
        connection.send_call(&oneway, vec![]).await.unwrap();
        // The next reply is that of the next call.
        let (reply, _) =
            call(&mut connection, "io.luo.ListSessions", Value::Null, vec![]).await.unwrap();
        assert_eq!(reply, json!({"sessions": []}));
    });
    let mut socket = UnixStream::connect(luod.socket()).unwrap();
    let text = "{\"method\":\"io.luo.GetStatus\",\"parameters\":null}\0";
    std::io::Write::write_all(&mut socket, text.as_bytes()).unwrap();
    let mut reply = Vec::new();
    std::io::BufRead::read_until(&mut std::io::BufReader::new(&socket), 0, &mut reply).unwrap();
    reply.pop();
    let reply: Value = serde_json::from_slice(&reply).unwrap();
    assert!(reply["error"].is_null() && reply["parameters"]["pid"].is_number(), "{reply}");
}

#[test]
fn more_replies_come_as_long_as_they_say_so() {
    let luod = Luod::start();
    run(async {
        let mut connection = connect(luod.socket()).await.unwrap();
        let watch = Method { method: "io.luo.Watch", parameters: Value::Null };
        connection.send_call(&Call::new(watch).set_more(true), vec![]).await.unwrap();
        let mut other = connect(luod.socket()).await.unwrap();
        // The watch stands when the call behind it is served: events are told from then on.
        let events = async {
            let mut seen = Vec::new();
            while !seen.contains(&"prepared".to_owned()) {
                let (reply, _) = connection.receive_reply::<Value, Failed>().await.unwrap();
                let reply = reply.expect("an event");
                assert_eq!(reply.continues(), Some(true));
                let event = reply.into_parameters().unwrap();
                seen.push(event["event"]["state"].as_str().unwrap().to_owned());
            }
        };
        let updates = async {
            loop {
                call(&mut other, "io.luo.Prepare", Value::Null, vec![]).await.unwrap();
                call(&mut other, "io.luo.Cancel", Value::Null, vec![]).await.unwrap();
            }
        };
        tokio::select! {
            () = events => {}
            () = updates => {}
        }
    });
    run(async {
        let mut connection = connect(luod.socket()).await.unwrap();
        let list = Method { method: "io.luo.ListFiles", parameters: Value::Null };
        connection.send_call(&Call::new(list).set_more(true), vec![]).await.unwrap();
        let (reply, _) = connection.receive_reply::<Value, Failed>().await.unwrap();
        let reply = reply.expect("a list");
        assert_ne!(reply.continues(), Some(true), "the last one says so");
        // The connection can be used again.
        call(&mut connection, "io.luo.GetStatus", Value::Null, vec![]).await.unwrap();
    });
}

#[test]
fn varlinkctl_understands_luod() {
    match Command::new("varlinkctl").arg("--version").output() {
        Ok(output) if output.status.success() => {}
        _ => {
            println!("SKIPPED: no varlinkctl here");
            return;
        }
    }
    let luod = Luod::start();
    let varlinkctl = |arguments: &[&str]| {
        let output = Command::new("varlinkctl").args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}{error}");
        said
    };
    let address = luod.socket();
    let address = address.to_str().unwrap();
    assert!(varlinkctl(&["info", address]).contains("luod"));
    assert!(varlinkctl(&["list-interfaces", address]).contains("io.luo.Session"));
    for interface in ["io.luo", "io.luo.Session"] {
        assert!(varlinkctl(&["introspect", address, interface]).contains("method"));
    }
    let status = varlinkctl(&["call", address, "io.luo.GetStatus", "{}"]);
    assert!(status.contains("incarnation"), "{status}");
}
