use proptest::prelude::*;
use std::path::PathBuf;

use super::message::{elements_of, elements_value};
use super::schema::{Kind, Schema};
use super::wire::{WireType, put_tag, put_varint};
use super::*;

/// The message as an importer and exporter without layouts would rebuild it.
fn canonical(message: &Message, file: &[u8]) -> Message {
    let mut out = Message::new(message.schema);
    for spec in message.schema.fields {
        let values: Vec<&Value> = message.all(spec.number).collect();
        if values.is_empty() {
            continue;
        }
        if matches!(values[0], Value::Packed(_) | Value::Run(_)) {
            let mut bits = Vec::new();
            for value in values {
                elements_of(value, spec.kind, file, &mut bits).unwrap();
            }
            out.put(
                spec.number,
                elements_value(spec.number, spec.kind, spec.packed, &bits),
            );
        } else if spec.repeated {
            for value in values {
                out.put(spec.number, inner(value, file));
            }
        } else {
            out.put(spec.number, inner(values[values.len() - 1], file));
        }
    }
    out
}

fn inner(value: &Value, file: &[u8]) -> Value {
    match value {
        Value::Message(message) => Value::Message(Box::new(canonical(message, file))),
        value => value.clone(),
    }
}

fn bytes_of(message: &Message, file: &[u8]) -> Vec<u8> {
    let bytes = encode::encode_to_vec(message, file).unwrap();
    assert_eq!(bytes.len() as u64, encoded_len(message));
    bytes
}

/// Decode, encode; then canonical form plus layout, through its text form.
fn round_trip(bytes: &[u8], schema: &'static Schema) {
    let message = decode(bytes, schema, Limits::default()).unwrap();
    assert!(
        bytes_of(&message, bytes) == bytes,
        "decode, encode changed the bytes"
    );
    let rebuilt = owned(&canonical(&message, bytes), bytes);
    let layout = Layout::between(&message, &rebuilt, &[], bytes);
    let applied = match layout {
        Some(layout) => {
            let text = layout.to_string();
            let parsed: Layout = text.parse().unwrap_or_else(|e| panic!("{e} in {text}"));
            assert_eq!(parsed, layout, "{text}");
            parsed.apply(rebuilt)
        }
        None => rebuilt,
    };
    assert!(
        bytes_of(&applied, bytes) == bytes,
        "layout lost bytes:\n{message:?}\n{applied:?}"
    );
}

/// Payload ranges as owned bytes, as an IR with inline data would hold them.
fn owned(message: &Message, file: &[u8]) -> Message {
    let mut out = Message::new(message.schema);
    for field in &message.fields {
        let own = |blob: &Blob| Blob::Owned(blob.bytes(file).unwrap().into());
        let value = match &field.value {
            Value::Message(message) => Value::Message(Box::new(owned(message, file))),
            Value::Packed(blob) => Value::Packed(own(blob)),
            Value::Run(blob) => Value::Run(own(blob)),
            Value::Bytes(blob) => Value::Bytes(own(blob)),
            value => value.clone(),
        };
        out.fields.push(Field {
            value,
            ..field.clone()
        });
    }
    out
}

fn models() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("tests/fixtures/stories260K/stories260K.onnx")];
    let extra = std::env::var_os("HLRC_MODELS").map_or("target/models".into(), PathBuf::from);
    for directory in [
        extra.clone(),
        extra.join("silero-vad"),
        "../shared/models".into(),
    ] {
        let entries = std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten();
        found.extend(
            entries
                .map(|e| e.path())
                .filter(|p| p.extension().is_some_and(|e| e == "onnx")),
        );
    }
    found
}

#[test]
fn real_models_come_back() {
    for path in models() {
        let bytes = std::fs::read(&path).unwrap();
        println!("{}: {} bytes", path.display(), bytes.len());
        round_trip(&bytes, &schema::MODEL);
    }
}

#[test]
fn every_truncation_is_an_error_or_shorter_model() {
    let bytes = small_model();
    let whole = decode(&bytes, &schema::MODEL, Limits::default()).unwrap();
    for end in 0..bytes.len() {
        match decode(&bytes[..end], &schema::MODEL, Limits::default()) {
            // Cut between two fields of the root, protobuf can't tell.
            Ok(message) => assert!(message.fields.len() < whole.fields.len()),
            Err(error) => assert!(error.offset <= end as u64, "{error}"),
        }
    }
}

fn small_model() -> Vec<u8> {
    let mut weight = Message::new(&schema::TENSOR);
    weight
        .put_ints(schema::tensor::DIMS, &[2, 3])
        .put_int(schema::tensor::DATA_TYPE, 1);
    weight
        .put_text(schema::tensor::NAME, "w")
        .put_bytes(schema::tensor::RAW_DATA, &[7; 24]);
    let mut node = Message::new(&schema::NODE);
    node.put_text(schema::node::INPUT, "x")
        .put_text(schema::node::INPUT, "w");
    node.put_text(schema::node::OUTPUT, "y")
        .put_text(schema::node::OP_TYPE, "MatMul");
    let mut graph = Message::new(&schema::GRAPH);
    graph
        .put_message(schema::graph::NODE, node)
        .put_message(schema::graph::INITIALIZER, weight);
    let mut model = Message::new(&schema::MODEL);
    model
        .put_int(schema::model::IR_VERSION, 8)
        .put_message(schema::model::GRAPH, graph);
    bytes_of(&model, &[])
}

#[test]
fn errors_name_path_and_byte() {
    let mut bytes = small_model();
    let at = bytes.windows(6).position(|w| w == b"MatMul").unwrap();
    bytes[at] = 0xff;
    let error = decode(&bytes, &schema::MODEL, Limits::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("graph.node[0].op_type, byte {at}: string is not UTF-8")
    );
}

#[test]
fn nesting_and_field_count_are_bounded() {
    let mut bytes = Vec::new();
    for _ in 0..300 {
        let mut outer = Vec::new();
        put_tag(&mut outer, 1, WireType::Len, 0);
        put_varint(&mut outer, bytes.len() as u64, 0);
        outer.extend(&bytes);
        put_tag(&mut bytes, 4, WireType::Len, 0);
        bytes = outer;
    }
    // TypeProto.sequence_type.elem_type nests without end.
    let mut nested = Vec::new();
    for level in 0..300 {
        let mut outer = Vec::new();
        put_tag(
            &mut outer,
            if level % 2 == 0 { 1 } else { 4 },
            WireType::Len,
            0,
        );
        put_varint(&mut outer, nested.len() as u64, 0);
        outer.extend(&nested);
        nested = outer;
    }
    let error = decode(&nested, &schema::TYPE, Limits::default()).unwrap_err();
    assert!(
        matches!(error.kind, wire::WireErrorKind::Depth(100)),
        "{error}"
    );
    let many = [0x0a, 0].repeat(1000);
    let limits = Limits {
        fields: 999,
        ..Limits::default()
    };
    let error = decode(&many, &schema::NODE, limits).unwrap_err();
    assert!(
        matches!(error.kind, wire::WireErrorKind::Fields(999)),
        "{error}"
    );
}

#[test]
fn edited_messages_keep_what_still_makes_sense() {
    let mut source = Message::new(&schema::NODE);
    source
        .put_text(schema::node::OP_TYPE, "Add")
        .put_text(schema::node::INPUT, "a");
    source
        .put_text(schema::node::DOMAIN, "")
        .put_text(schema::node::INPUT, "b");
    let mut rebuilt = Message::new(&schema::NODE);
    rebuilt
        .put_text(schema::node::INPUT, "a")
        .put_text(schema::node::INPUT, "b");
    rebuilt.put_text(schema::node::OP_TYPE, "Add");
    let layout = Layout::between(&source, &rebuilt, &[], &[]).unwrap();
    assert_eq!(layout.to_string(), "4 1 +3a00 1");
    let mut edited = Message::new(&schema::NODE);
    edited
        .put_text(schema::node::INPUT, "c")
        .put_text(schema::node::OUTPUT, "y");
    edited.put_text(schema::node::OP_TYPE, "Neg");
    let bytes = bytes_of(&layout.apply(edited), &[]);
    let back = decode(&bytes, &schema::NODE, Limits::default()).unwrap();
    assert_eq!(back.texts(schema::node::INPUT).collect::<Vec<_>>(), ["c"]);
    assert_eq!(back.text(schema::node::OP_TYPE), Some("Neg"));
    assert_eq!(back.text(schema::node::OUTPUT), Some("y"));
}

#[test]
fn external_locations_stay_below_the_model() {
    let of = |location: &str| {
        let mut pair = Message::new(&schema::ENTRY);
        pair.put_text(1, "location").put_text(2, location);
        let mut tensor = Message::new(&schema::TENSOR);
        tensor
            .put_int(schema::tensor::DATA_LOCATION, 1)
            .put_message(13, pair);
        external::ExternalData::of(&tensor)
    };
    for bad in [
        "",
        "../w",
        "/etc/passwd",
        "a/../../w",
        "..\\w",
        "C:w",
        "a\0b",
    ] {
        assert!(of(bad).is_err(), "{bad:?} was accepted");
    }
    let good = of("weights/w.bin").unwrap().unwrap();
    assert!(good.check(16, 16).is_ok());
    assert!(good.check(17, 16).is_err());
    let far = external::ExternalData {
        offset: u64::MAX,
        ..good
    };
    assert!(far.check(2, 16).is_err());
}

#[test]
fn a_new_type_replaces_one_that_was_kept_as_bytes() {
    use schema::{tensor_type, type_proto, value_info};
    let info = |number: Option<i64>| {
        let mut info = Message::new(&schema::VALUE_INFO);
        info.put_text(value_info::NAME, "y");
        if let Some(number) = number {
            let mut tensor = Message::new(&schema::TENSOR_TYPE);
            tensor.put_int(tensor_type::ELEM_TYPE, number);
            let mut ty = Message::new(&schema::TYPE);
            ty.put_message(type_proto::TENSOR_TYPE, tensor);
            info.put_message(value_info::TYPE, ty);
        }
        info
    };
    let (source, rebuilt) = (info(Some(999)), info(None));
    let layout = Layout::between(&source, &rebuilt, &[], &[]).unwrap();
    assert_eq!(
        bytes_of(&layout.apply(rebuilt), &[]),
        bytes_of(&source, &[])
    );
    let edited = bytes_of(&layout.apply(info(Some(1))), &[]);
    assert_eq!(edited, bytes_of(&info(Some(1)), &[]));
}

fn take(seed: &mut impl Iterator<Item = u8>) -> u8 {
    seed.next().unwrap_or(0)
}

/// Encodes choices from `seed` as a message of `schema`, in unusual ways.
fn weird(schema: &Schema, seed: &mut impl Iterator<Item = u8>, depth: u32, out: &mut Vec<u8>) {
    let mut used = Vec::new();
    for _ in 0..take(seed) % 6 {
        let wide = |n: u8| if n >= 250 { 3 + n % 4 } else { 0 };
        let pick = take(seed);
        if pick > 230 || schema.fields.is_empty() {
            put_tag(
                out,
                900 + u32::from(take(seed)),
                WireType::Varint,
                wide(take(seed)),
            );
            put_varint(out, u64::from(take(seed)) << 20, wide(take(seed)));
            continue;
        }
        let spec = &schema.fields[usize::from(pick) % schema.fields.len()];
        let mut body = Vec::new();
        match spec.kind {
            Kind::Int | Kind::Float | Kind::Double => {
                let wire = match spec.kind {
                    Kind::Int => WireType::Varint,
                    Kind::Float => WireType::Fixed32,
                    _ => WireType::Fixed64,
                };
                let packed = spec.repeated && take(seed) > 127;
                for _ in 0..if spec.repeated { take(seed) % 5 } else { 1 } {
                    if !packed {
                        put_tag(&mut body, spec.number, wire, wide(take(seed)));
                    }
                    match wire {
                        WireType::Varint => {
                            put_varint(&mut body, u64::from(take(seed)) << 5, wide(take(seed)))
                        }
                        WireType::Fixed32 => body.extend([take(seed), 0, 1, take(seed)]),
                        _ => body.extend([take(seed), 0, 1, 2, 3, 4, 5, take(seed)]),
                    }
                }
                if !packed {
                    out.extend(body);
                    continue;
                }
            }
            Kind::Text | Kind::Bytes => body.extend((0..take(seed) % 4).map(|n| b'a' + n)),
            Kind::Message(inner) => {
                if depth == 0 || (!spec.repeated && used.contains(&spec.number)) {
                    continue;
                }
                used.push(spec.number);
                weird(inner, seed, depth - 1, &mut body);
            }
        }
        put_tag(out, spec.number, WireType::Len, wide(take(seed)));
        put_varint(out, body.len() as u64, wide(take(seed)));
        out.extend(body);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn weird_encodings_come_back(seed in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = Vec::new();
        weird(&schema::MODEL, &mut seed.into_iter(), 8, &mut bytes);
        round_trip(&bytes, &schema::MODEL);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = decode(&bytes, &schema::GRAPH, Limits::default()) {
            prop_assert_eq!(bytes_of(&message, &bytes), bytes);
        }
    }

    #[test]
    fn arbitrary_layouts_never_panic(text in "[0-9 *~.()+@,:uxp-]{0,40}") {
        if let Ok(layout) = text.parse::<Layout>() {
            let message = decode(&small_model(), &schema::MODEL, Limits::default()).unwrap();
            let _ = layout.apply(message);
        }
    }
}
