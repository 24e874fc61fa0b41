//! A JSON-RPC node over WebSocket (an Ethereum node, or ganache): requests, a subscription made in `on_open` so that it
//! outlives every connection, a thousand requests pipelined from eight threads.
//!
//! ```sh
//! cargo run --release --example ethereum -- --url ws://127.0.0.1:8545
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use lexopt::prelude::*;
use serde_json::{Value, json};
use ws_supervisor::{Client, ClientConfig, Event, Message, Request, RequestError, Supervisor};

const PATIENCE: Duration = Duration::from_secs(20);
const BLOCKS: u64 = 50;

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::init();
    let (mut url, mut until_lost) = (None, false);
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("url") => url = Some(parser.value()?.string()?),
            Long("until-lost") => until_lost = true,
            Short('h') | Long("help") => {
                println!(
                    "--url URL     a node that lets itself be told to mine, such as ganache\n--until-lost  ends with the node"
                );
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let url = url.ok_or("--url must name a node, for example ws://127.0.0.1:8545")?;
    let supervisor = Supervisor::start()?;
    let config = ClientConfig::new(url)?.name("node").event_capacity(1 << 16).on_open(|session| {
        let subscription: String = session.request("eth_subscribe", ["newHeads"])?;
        println!("connection {}: subscription {subscription}", session.epoch());
        Ok(())
    });
    let client = supervisor.spawn_client(config)?;
    client.wait_until_open(PATIENCE)?;
    let first = block_number(&client)?;
    println!("block {first}");

    for _ in 0..BLOCKS {
        client.request::<Value>("evm_mine", ())?;
    }
    let heads: Vec<u64> = (0..BLOCKS).map(|_| next_head(&client)).collect::<Result<_, _>>()?;
    if heads != (first + 1..=first + BLOCKS).collect::<Vec<_>>() {
        return Err(format!("heads out of order: {heads:?}").into());
    }
    println!("mined {BLOCKS} blocks, and heard of each in order");

    pipeline(&client, first)?;
    errors(&client)?;

    let pending = client.start_request(Request::new("eth_blockNumber", ()))?;
    println!("{}", pending.wait::<String>()?);
    if until_lost {
        println!("waiting for the end");
        wait_for(&client, |event| match event {
            Event::Disconnected { reason, .. } => {
                println!("{reason}");
                Some(())
            }
            _ => None,
        })?;
    }
    Ok(())
}

fn number(hex: &str) -> Result<u64, Box<dyn Error>> {
    Ok(u64::from_str_radix(hex.trim_start_matches("0x"), 16)?)
}

fn block_number(client: &Client) -> Result<u64, Box<dyn Error>> {
    number(&client.request::<String>("eth_blockNumber", ())?)
}

fn wait_for<T>(client: &Client, mut pick: impl FnMut(Event) -> Option<T>) -> Result<T, Box<dyn Error>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = pick(client.events().recv_deadline(deadline)?) {
            return Ok(found);
        }
    }
}

fn next_message(client: &Client) -> Result<Message, Box<dyn Error>> {
    wait_for(client, |event| match event {
        Event::Message(message) => Some(message),
        _ => None,
    })
}

fn next_head(client: &Client) -> Result<u64, Box<dyn Error>> {
    let head: Value = serde_json::from_slice(next_message(client)?.as_bytes())?;
    number(head["params"]["result"]["number"].as_str().ok_or("not a head")?)
}

/// A thousand requests at once, each for a block of its own: every answer must be the one to its request.
fn pipeline(client: &Client, first: u64) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let matched = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8_u64)
            .map(|thread| {
                scope.spawn(move || -> Result<usize, RequestError> {
                    let wanted = (0..125).map(|n| first + 1 + (thread * 125 + n) % BLOCKS);
                    let ask = |block: u64| {
                        let request = Request::new("eth_getBlockByNumber", json!([format!("{block:#x}"), false]));
                        Ok((block, client.start_request(request)?))
                    };
                    let pending: Vec<_> = wanted.map(ask).collect::<Result<_, RequestError>>()?;
                    let mut matched = 0;
                    for (block, pending) in pending {
                        let found: Value = pending.wait()?;
                        matched += usize::from(found["number"] == format!("{block:#x}"));
                    }
                    Ok(matched)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(0))).sum::<Result<usize, _>>()
    })?;
    if matched != 1000 {
        return Err(format!("only {matched} of 1000 answers were those to their requests").into());
    }
    println!("1000 requests from 8 threads, 1000 answers matched, in {:.2?}", began.elapsed());
    Ok(())
}

/// What a server says when it is asked for nonsense.
fn errors(client: &Client) -> Result<(), Box<dyn Error>> {
    match client.request::<Value>("eth_noSuchMethod", ()) {
        Err(RequestError::Rpc(error)) => println!("unknown method: {} {}", error.code, error.message),
        other => return Err(format!("an unknown method got {other:?}").into()),
    }
    // With a request pending, an answer that says no id is nobody's, and comes as it is.
    let pending = client.start_request(Request::new("eth_chainId", ()))?;
    client.send("{\"jsonrpc\":\"2.0\",")?;
    let stray = next_message(client)?;
    println!("malformed: {}", stray.as_text().unwrap_or("(binary)"));
    println!("chain {}", pending.wait::<String>()?);
    client.send(
        r#"[{"jsonrpc":"2.0","id":1,"method":"net_version"},{"jsonrpc":"2.0","id":2,"method":"eth_blockNumber"}]"#,
    )?;
    println!("batch: {}", next_message(client)?.as_text().unwrap_or("(binary)"));
    Ok(())
}
