//! Asks a server for its version over TLS, trusting the CA in a file: `URL CA`.

use ws_supervisor::{Client, ClientConfig, Tls};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(ca)) = (arguments.next(), arguments.next()) else { return Err("URL CA".into()) };
    let tls = Tls::new().root_file(ca).without_system_roots();
    let client = Client::connect(ClientConfig::new(url)?.tls(tls))?;
    let answer: serde_json::Value = client.request("public/test", serde_json::json!({}))?;
    let tls = client.handshake().and_then(|handshake| handshake.tls.clone());
    println!("static: {answer}, {tls:?}");
    Ok(client.close()?)
}
