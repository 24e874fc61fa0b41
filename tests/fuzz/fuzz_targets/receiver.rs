//! The receiver's files as they are, held against tungstenite. The first bytes of an input say how the others are split and
//! how large the read buffer is.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../src/message.rs"]
mod message;
#[path = "../../../src/text.rs"]
mod text;

#[path = "../../../src/transport"]
mod transport {
    mod assembly;
    #[path = "no_deflate.rs"]
    mod deflate;
    mod head;
    #[path = "judge_tests.rs"]
    mod judge;
    mod receiver;

    pub fn agree(bytes: &[u8], parts: &[usize], buffer: usize) {
        judge::agree(bytes, parts, buffer);
    }
}

fuzz_target!(|input: &[u8]| {
    let [buffer, a, b, c, bytes @ ..] = input else { return };
    let parts = [a, b, c].map(|part| usize::from(*part));
    transport::agree(bytes, &parts, 139 + 8 * usize::from(*buffer));
});
