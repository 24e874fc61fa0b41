//! What the upgrade says, and where it leads.

use ws_supervisor::testing::{Script, Server};
use ws_supervisor::*;

use crate::common::config;

fn header(server: &Server, name: &str) -> Option<String> {
    let records = server.records();
    let headers = &records.last().unwrap().headers;
    headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_string())
}

#[test]
fn who_we_are_is_said_as_the_url_and_the_options_have_it() {
    let server = Server::echo().unwrap();
    let url = server.url().replace("://", "://desk:p%40ss@");
    let client = Client::connect(ClientConfig::new(&url).unwrap()).unwrap();
    assert_eq!(header(&server, "authorization").unwrap(), "Basic ZGVzazpwQHNz");
    assert!(header(&server, "user-agent").unwrap().starts_with("ws-supervisor/"));
    assert!(!client.handshake().unwrap().url.contains("p@ss"));
    let plain =
        config(&server).header("Origin", "https://desk.example").host_header("gateway.example").without_user_agent();
    Client::connect(plain).unwrap();
    assert_eq!(header(&server, "host").unwrap(), "gateway.example");
    assert_eq!(header(&server, "origin").unwrap(), "https://desk.example");
    assert_eq!((header(&server, "user-agent"), header(&server, "authorization")), (None, None));
}

#[test]
fn what_the_server_answered_can_be_read_in_the_session_and_from_outside() {
    let script = Script::echo().header("Set-Cookie", "node=7; Path=/").header("X-Region", "fra");
    let server = Server::start(script.header("Sec-WebSocket-Protocol", "fix.v5")).unwrap();
    let config = config(&server).subprotocol("fix.v5").on_open(|session| {
        assert_eq!(session.handshake().header("x-region"), Some("fra"));
        Ok(())
    });
    let client = Client::connect(config).unwrap();
    let handshake = client.handshake().unwrap();
    assert_eq!(handshake.cookies().collect::<Vec<_>>(), ["node=7; Path=/"]);
    assert_eq!(handshake.subprotocol.as_deref(), Some("fix.v5"));
    assert_eq!((handshake.peer, handshake.proxy.as_ref()), (server.address(), None));
    assert!(!format!("{handshake:?}").contains("node=7"), "no header's value is printed");
}

#[test]
fn redirects_are_followed_only_where_asked_and_never_to_a_weaker_scheme() {
    let goal = Server::echo().unwrap();
    let start = Server::start(Script::refuse(307).header("Location", &goal.url().replace("ws:", "http:"))).unwrap();
    let Err(StartError::Connect(ConnectError::Refused(refusal))) = Client::connect(config(&start)) else { panic!() };
    assert_eq!((refusal.status, goal.accepts()), (307, 0));
    let client = Client::connect(
        config(&start)
            .header("Authorization", "Bearer secret")
            .header("X-Api-Key", "k")
            .host_header("gateway")
            .redirects(1),
    )
    .unwrap();
    assert_eq!(client.handshake().unwrap().peer, goal.address());
    assert_eq!(header(&start, "authorization").unwrap(), "Bearer secret");
    for name in ["authorization", "x-api-key"] {
        assert_eq!(header(&goal, name), None, "what is meant for one host is not told to another");
    }
    assert_eq!(header(&goal, "host").unwrap(), goal.address().to_string());
    // Round and round.
    let circle = Server::start(Script::refuse(302).header("Location", "/again")).unwrap();
    let Err(StartError::Connect(error)) = Client::connect(config(&circle).redirects(3)) else { panic!() };
    assert!(matches!(&error, ConnectError::Refused(refusal) if refusal.status == 302), "{error}");
    assert!(error.to_string().contains("after 3 redirects in a row"), "{error}");
    assert_eq!(circle.accepts(), 4);
    let secure = Server::start_tls(Script::refuse(301).header("Location", &goal.url())).unwrap();
    let Err(StartError::Connect(error)) = Client::connect(config(&secure).redirects(3)) else { panic!() };
    assert!(error.to_string().contains("from `wss` to `ws`"), "{error}");
    assert_eq!(goal.accepts(), 1);
}

#[test]
fn a_name_beyond_ascii_is_resolved_as_dns_has_it() {
    let server = Server::echo().unwrap();
    let address = server.address();
    let config = ClientConfig::new(format!("ws://bücher.example:{}/", address.port())).unwrap();
    let config = config.resolver(move |host, _| {
        assert_eq!(host, "xn--bcher-kva.example");
        Ok(vec![address])
    });
    Client::connect(config).unwrap();
    let host = header(&server, "host").unwrap();
    assert_eq!(host, format!("xn--bcher-kva.example:{}", address.port()));
}
