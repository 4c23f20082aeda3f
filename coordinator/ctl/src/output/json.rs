//! Messages as JSON, by the descriptors that the wire itself is built from: a new field of the wire shows up here by
//! itself, under its own name. Not the canonical JSON of protobuf, which writes 64-bit numbers as text.
//!
//! **Invariant:** every field of a message is always there under its name in the `.proto` file: text "" and number 0 when
//! not set, null for a message or an optional field that is absent. Enums are lower-case words ("unknown" for the
//! unspecified value), timestamps RFC 3339 in UTC, 64-bit numbers are numbers.

use std::{collections::BTreeMap, sync::OnceLock};

use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, field_descriptor_proto as field,
};
use regent_proto::coordinator::v1 as wire;
use serde_json::{Map, Value};

/// A message that can be shown, with its full name in the descriptors.
pub trait Shown: Message {
    /// Such as ".regent.coordinator.v1.Cluster".
    const NAME: &'static str;
}

macro_rules! shown {
    ($($message:ident),* $(,)?) => {
        $(impl Shown for wire::$message {
            const NAME: &'static str = concat!(".regent.coordinator.v1.", stringify!($message));
        })*
    };
}

shown!(Cluster, AllowList, Node, Operation, Token, User, Credentials, CatalogEntry, AuditRecord, Event);

/// The message as a JSON object.
pub fn object<M: Shown>(message: &M) -> Value {
    let bytes = message.encode_to_vec();
    Value::Object(
        decode(M::NAME, &bytes)
            .expect("bytes that were encoded a line above decode by the descriptors of the same build"),
    )
}

/// The messages as an object with one array, such as `{"clusters": [...]}`, so that fields can be added later.
pub fn list<M: Shown>(name: &str, messages: &[M]) -> Value {
    let items = messages.iter().map(object).collect();
    Value::Object(Map::from_iter([(name.to_owned(), Value::Array(items))]))
}

// === descriptors ===

struct Pool {
    messages: BTreeMap<String, DescriptorProto>,
    enums: BTreeMap<String, EnumDescriptorProto>,
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let set =
            FileDescriptorSet::decode(regent_proto::DESCRIPTORS).expect("the build script encoded the descriptors");
        let mut pool = Pool { messages: BTreeMap::new(), enums: BTreeMap::new() };
        for file in set.file {
            let package = format!(".{}", file.package());
            for item in file.enum_type {
                pool.enums.insert(format!("{package}.{}", item.name()), item);
            }
            for item in file.message_type {
                pool.add(format!("{package}.{}", item.name()), item);
            }
        }
        pool
    })
}

impl Pool {
    fn add(&mut self, name: String, message: DescriptorProto) {
        for nested in &message.nested_type {
            self.add(format!("{name}.{}", nested.name()), nested.clone());
        }
        for item in &message.enum_type {
            self.enums.insert(format!("{name}.{}", item.name()), item.clone());
        }
        self.messages.insert(name, message);
    }

    fn is_map(&self, field: &FieldDescriptorProto) -> bool {
        self.messages.get(field.type_name()).is_some_and(|entry| entry.options.as_ref().is_some_and(|o| o.map_entry()))
    }
}

// === decoding ===

/// A value as it stands on the wire.
enum Raw<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Decodes a message; `None` only for bytes that are not this message.
fn decode(name: &str, mut bytes: &[u8]) -> Option<Map<String, Value>> {
    let pool = pool();
    let message = pool.messages.get(name)?;
    let mut fields: Map<String, Value> =
        message.field.iter().map(|field| (field.name().to_owned(), absent(pool, field))).collect();
    while !bytes.is_empty() {
        let (tag, kind) = decode_key(&mut bytes).ok()?;
        let raw = read(kind, &mut bytes)?;
        let Some(field) = message.field.iter().find(|field| field.number() == i32::try_from(tag).unwrap_or(0)) else {
            continue;
        };
        let slot = fields.get_mut(field.name())?;
        if pool.is_map(field) {
            let Raw::Bytes(entry) = raw else { return None };
            let mut entry = decode(field.type_name(), entry)?;
            let Some(Value::String(key)) = entry.remove("key") else { return None };
            slot.as_object_mut()?.insert(key, entry.remove("value")?);
        } else if field.label() == field::Label::Repeated {
            slot.as_array_mut()?.extend(repeated(field, raw)?);
        } else {
            *slot = value(field, raw)?;
        }
    }
    Some(fields)
}

fn read<'a>(kind: WireType, bytes: &mut &'a [u8]) -> Option<Raw<'a>> {
    match kind {
        WireType::Varint => decode_varint(bytes).ok().map(Raw::Number),
        WireType::SixtyFourBit => {
            let (head, rest) = bytes.split_first_chunk::<8>()?;
            *bytes = rest;
            Some(Raw::Number(u64::from_le_bytes(*head)))
        }
        WireType::ThirtyTwoBit => {
            let (head, rest) = bytes.split_first_chunk::<4>()?;
            *bytes = rest;
            Some(Raw::Number(u64::from(u32::from_le_bytes(*head))))
        }
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
            let (head, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            Some(Raw::Bytes(head))
        }
        WireType::StartGroup | WireType::EndGroup => None,
    }
}

/// What a field holds while it is not set.
fn absent(pool: &Pool, field: &FieldDescriptorProto) -> Value {
    if pool.is_map(field) {
        return Value::Object(Map::new());
    }
    if field.label() == field::Label::Repeated {
        return Value::Array(Vec::new());
    }
    if field.proto3_optional() || field.r#type() == field::Type::Message {
        return Value::Null;
    }
    match field.r#type() {
        field::Type::String | field::Type::Bytes => Value::String(String::new()),
        field::Type::Bool => Value::Bool(false),
        field::Type::Enum => enum_word(field.type_name(), 0),
        field::Type::Double | field::Type::Float => Value::from(0.0),
        _ => Value::from(0),
    }
}

/// One value, or several that were packed into one.
fn repeated(field: &FieldDescriptorProto, raw: Raw<'_>) -> Option<Vec<Value>> {
    let kind = match field.r#type() {
        field::Type::String | field::Type::Bytes | field::Type::Message | field::Type::Group => None,
        field::Type::Double | field::Type::Fixed64 | field::Type::Sfixed64 => Some(WireType::SixtyFourBit),
        field::Type::Float | field::Type::Fixed32 | field::Type::Sfixed32 => Some(WireType::ThirtyTwoBit),
        _ => Some(WireType::Varint),
    };
    match (kind, raw) {
        (Some(kind), Raw::Bytes(mut packed)) => {
            let mut values = Vec::new();
            while !packed.is_empty() {
                values.push(value(field, read(kind, &mut packed)?)?);
            }
            Some(values)
        }
        (_, raw) => Some(vec![value(field, raw)?]),
    }
}

fn value(field: &FieldDescriptorProto, raw: Raw<'_>) -> Option<Value> {
    Some(match (field.r#type(), raw) {
        (field::Type::String, Raw::Bytes(text)) => Value::String(String::from_utf8(text.to_vec()).ok()?),
        (field::Type::Message, Raw::Bytes(bytes)) if field.type_name() == ".google.protobuf.Timestamp" => {
            let time = prost_types::Timestamp::decode(bytes).ok()?;
            super::units::time(Some(&time)).map_or(Value::Null, |time| Value::String(time.to_string()))
        }
        (field::Type::Message, Raw::Bytes(bytes)) => Value::Object(decode(field.type_name(), bytes)?),
        (field::Type::Bytes, Raw::Bytes(bytes)) => Value::Array(bytes.iter().copied().map(Value::from).collect()),
        (field::Type::Bool, Raw::Number(number)) => Value::Bool(number != 0),
        (field::Type::Enum, Raw::Number(number)) => enum_word(field.type_name(), number),
        (field::Type::Double, Raw::Number(bits)) => Value::from(f64::from_bits(bits)),
        (field::Type::Float, Raw::Number(bits)) => Value::from(f32::from_bits(u32::try_from(bits).ok()?)),
        (field::Type::Int64 | field::Type::Sfixed64, Raw::Number(bits)) => Value::from(bits.cast_signed()),
        // A negative 32-bit number stands on the wire with all 64 bits.
        (field::Type::Int32, Raw::Number(bits)) => Value::from(bits.cast_signed()),
        (field::Type::Sint32 | field::Type::Sint64, Raw::Number(bits)) => {
            Value::from((bits >> 1).cast_signed() ^ -((bits & 1).cast_signed()))
        }
        (field::Type::Sfixed32, Raw::Number(bits)) => Value::from(u32::try_from(bits).ok()?.cast_signed()),
        (
            field::Type::Uint32 | field::Type::Uint64 | field::Type::Fixed32 | field::Type::Fixed64,
            Raw::Number(bits),
        ) => Value::from(bits),
        (_, Raw::Number(_) | Raw::Bytes(_)) => return None,
    })
}

fn enum_word(name: &str, number: u64) -> Value {
    let word = pool().enums.get(name).and_then(|item| {
        let zero = item.value.iter().find(|value| value.number() == 0)?;
        let prefix = zero.name().strip_suffix("UNSPECIFIED").unwrap_or_default();
        let value = item.value.iter().find(|value| u64::try_from(value.number()) == Ok(number))?;
        Some(super::words::plain(value.name(), prefix))
    });
    word.map_or_else(|| Value::String(format!("unknown({number})")), Value::String)
}

#[cfg(test)]
mod tests {
    use regent_proto::types::v1 as types;

    use super::*;

    #[test]
    fn an_empty_message_shows_every_field() {
        let shown = object(&wire::Cluster::default());
        let fields = shown.as_object().unwrap();
        let described = &pool().messages[wire::Cluster::NAME].field;
        assert_eq!(fields.len(), described.len());
        assert_eq!(fields["health"], "unknown");
        assert_eq!(fields["create_time"], Value::Null);
        assert_eq!(fields["labels"], serde_json::json!({}));
        assert_eq!(fields["members"], serde_json::json!([]));
        assert_eq!(fields["epoch"], 0);
    }

    #[test]
    fn values_of_every_kind_come_through() {
        let node = wire::Node {
            name: "nodes/a".into(),
            labels: [("zone".to_owned(), "z1".to_owned())].into(),
            connected: true,
            last_contact: Some(prost_types::Timestamp { seconds: 1_767_225_600, nanos: 500_000_000 }),
            host: Some(types::HostFacts { cpu_percent: 12.5, memory_bytes: u64::MAX, ..Default::default() }),
            engines: vec![types::EngineOffer { versions: vec!["2".into(), "1".into()], ..Default::default() }],
            ..Default::default()
        };
        let shown = object(&node);
        assert_eq!(shown["labels"]["zone"], "z1");
        assert_eq!(shown["connected"], true);
        assert_eq!(shown["last_contact"], "2026-01-01T00:00:00.5Z");
        assert_eq!(shown["host"]["cpu_percent"], 12.5);
        assert_eq!(shown["host"]["memory_bytes"], u64::MAX);
        assert_eq!(shown["engines"][0]["versions"], serde_json::json!(["2", "1"]));
    }

    #[test]
    fn enums_are_words_and_optionals_null_until_set() {
        let member = wire::Member { state: wire::MemberState::NeedsRejoin.into(), ..Default::default() };
        let cluster = wire::Cluster { members: vec![member], ..Default::default() };
        let shown = object(&cluster);
        assert_eq!(shown["members"][0]["state"], "needs-rejoin");
        assert_eq!(shown["members"][0]["lag_bytes"], Value::Null);
        let member = wire::Member { lag_bytes: Some(0), ..Default::default() };
        let shown = object(&wire::Cluster { members: vec![member], ..Default::default() });
        assert_eq!(shown["members"][0]["lag_bytes"], 0);
    }
}
