//! How values of the library that have a form of their own are written in a recording, so that they are read back as they were.

use data_encoding::BASE64;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::message::Message;
use crate::request::Json;

/// A message: its text, or its bytes in base64.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Text(std::borrow::Cow<'a, str>),
    Binary { base64: String },
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let payload = match self.as_text() {
            Some(text) => Payload::Text(text.into()),
            None => Payload::Binary { base64: BASE64.encode(self.as_bytes()) },
        };
        payload.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Payload::deserialize(deserializer)? {
            Payload::Text(text) => Self::text(text.into_owned()),
            Payload::Binary { base64 } => Self::binary(BASE64.decode(base64.as_bytes()).map_err(D::Error::custom)?),
        })
    }
}

/// The text of a result, as the server wrote it.
impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}
