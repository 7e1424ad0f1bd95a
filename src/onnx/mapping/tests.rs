use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::ir::text;
use crate::ir::verify::verify;
use crate::onnx::encode::encode_to_vec;
use crate::onnx::message::{Blob, Field, Value};
use crate::onnx::wire::{WireType, put_tag, put_varint};
use crate::onnx::{Limits, decode};

/// Ends a chain of puts.
fn done(_: &mut Message) {}

/// Import, print, parse, build, encode; the bytes must be the file's.
fn round_trip(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let module = import(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    verify(&module).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let printed = text::print(&module);
    let parsed = text::parse(&printed).unwrap_or_else(|error| panic!("{error}"));
    assert!(parsed == module, "{}: text loses something", path.display());
    let name: Arc<str> = path.file_name().unwrap().to_str().unwrap().into();
    let message = Builder::model(&parsed, &mut Sources::new(name)).unwrap();
    let back = encode_to_vec(&message, &bytes).unwrap();
    if back != bytes {
        let at = back.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
        let (from, to) = (
            at.saturating_sub(40),
            (at + 40).min(bytes.len()).min(back.len()),
        );
        panic!(
            "{}: differs at byte {at}\nsource {:?}\nback   {:?}",
            path.display(),
            String::from_utf8_lossy(&bytes[from..to]),
            String::from_utf8_lossy(&back[from..to]),
        );
    }
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
        let is_model = |p: &PathBuf| p.extension().is_some_and(|e| e == "onnx");
        found.extend(entries.map(|e| e.path()).filter(is_model));
    }
    found
}

#[test]
fn real_models_come_back_through_text() {
    for path in models() {
        println!("{}", path.display());
        round_trip(&path);
    }
}

/// A tensor in `field`, five elements.
fn tensor(name: &str, dtype: i64, put: impl Fn(&mut Message)) -> Message {
    let mut message = Message::new(&schema::TENSOR);
    message
        .put_ints(schema::tensor::DIMS, &[5])
        .put_int(schema::tensor::DATA_TYPE, dtype);
    message.put_text_if(schema::tensor::NAME, name);
    put(&mut message);
    message.canonical()
}

fn info(name: &str) -> Message {
    use schema::{dimension, shape, tensor_type, type_proto, value_info};
    let mut dim = Message::new(&schema::DIMENSION);
    dim.put_text(dimension::DIM_PARAM, "N")
        .put_text(dimension::DENOTATION, "BATCH");
    let mut dims = Message::new(&schema::SHAPE);
    dims.put_message(shape::DIM, dim)
        .put_message(shape::DIM, Message::new(&schema::DIMENSION));
    let mut tensor = Message::new(&schema::TENSOR_TYPE);
    tensor
        .put_int(tensor_type::ELEM_TYPE, 1)
        .put_message(tensor_type::SHAPE, dims);
    let mut ty = Message::new(&schema::TYPE);
    ty.put_message(type_proto::TENSOR_TYPE, tensor);
    let mut info = Message::new(&schema::VALUE_INFO);
    info.put_text(value_info::NAME, name)
        .put_message(value_info::TYPE, ty);
    info
}

fn attribute(name: &str, kind: i64, put: impl Fn(&mut Message)) -> Message {
    let mut message = Message::new(&schema::ATTRIBUTE);
    message.put_text(schema::attribute::NAME, name);
    put(&mut message);
    message.put_int(schema::attribute::TYPE, kind);
    message.canonical()
}

fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<Message>) -> Message {
    let mut message = Message::new(&schema::NODE);
    inputs
        .iter()
        .for_each(|name| done(message.put_text(schema::node::INPUT, name)));
    outputs
        .iter()
        .for_each(|name| done(message.put_text(schema::node::OUTPUT, name)));
    message.put_text(schema::node::OP_TYPE, op);
    for attribute in attributes {
        message.put_message(schema::node::ATTRIBUTE, attribute);
    }
    message
}

/// A model with every attribute kind, typed data, subgraphs and functions.
fn everything() -> Message {
    use schema::{attribute as a, graph as g, model as m, tensor as t};
    let sparse = || {
        let mut sparse = Message::new(&schema::SPARSE_TENSOR);
        sparse.put_message(
            1,
            tensor("sv", 1, |m| done(m.put_floats(t::FLOAT_DATA, &[1.5; 5]))),
        );
        sparse.put_message(
            2,
            tensor("", 7, |m| done(m.put_ints(t::INT64_DATA, &[1, 2, 3, 4, 9]))),
        );
        sparse.put_ints(3, &[10]);
        sparse
    };
    let mut inner = Message::new(&schema::GRAPH);
    inner.put_text(g::NAME, "then").put_message(
        g::INITIALIZER,
        tensor("w", 6, |m| {
            done(m.put_ints(t::INT32_DATA, &[-1, 2, -3, 4, 5]))
        }),
    );
    inner.put_message(g::NODE, node("Add", &["x", "w"], &["inner"], vec![]));
    inner
        .put_message(g::OUTPUT, info("inner"))
        .put_message(g::OUTPUT, info("w"));
    let inner = inner.canonical();
    let types = info("ty").message(2).unwrap().clone();
    let kinds = vec![
        attribute("f", 1, |m| done(m.put_float(a::F, f32::NAN))),
        attribute("i", 2, |m| done(m.put_int(a::I, -7))),
        attribute("s", 3, |m| done(m.put_bytes(a::S, b"\xff\0\""))),
        attribute("t", 4, |m| {
            done(m.put_message(
                a::T,
                tensor("", 10, |m| {
                    done(m.put_ints(t::INT32_DATA, &[1, 0x3c00, 3, 4, 65535]))
                }),
            ))
        }),
        attribute("then_branch", 5, |m| {
            done(m.put_message(a::G, inner.clone()))
        }),
        attribute("floats", 6, |m| {
            done(m.put_floats(a::FLOATS, &[0.0, -0.0, 1e-45]))
        }),
        attribute("ints", 7, |m| {
            done(m.put_ints(a::INTS, &[i64::MIN, 0, i64::MAX]))
        }),
        attribute("strings", 8, |m| {
            done(m.put_bytes(a::STRINGS, b"a").put_bytes(a::STRINGS, b""))
        }),
        attribute("tensors", 9, |m| {
            m.put_message(
                a::TENSORS,
                tensor("a", 8, |m| {
                    (0..5).for_each(|_| done(m.put_bytes(t::STRING_DATA, b"s")))
                }),
            );
            m.put_message(
                a::TENSORS,
                tensor("b", 22, |m| {
                    done(m.put_ints(t::INT32_DATA, &[0x21, 0x43, 5]))
                }),
            );
        }),
        attribute("graphs", 10, |m| {
            done(m.put_message(a::GRAPHS, inner.clone()))
        }),
        attribute("sparse", 11, |m| {
            done(m.put_message(a::SPARSE_TENSOR, sparse()))
        }),
        attribute("sparses", 12, |m| {
            done(m.put_message(a::SPARSE_TENSORS, sparse()))
        }),
        attribute("tp", 13, |m| done(m.put_message(a::TP, types.clone()))),
        attribute("tps", 14, |m| {
            done(m.put_message(a::TYPE_PROTOS, types.clone()))
        }),
        attribute("no_floats", 6, |_| ()),
        attribute("no_tensors", 9, |_| ()),
        attribute("ref", 2, |m| done(m.put_text(a::REF_ATTR_NAME, "outer"))),
        attribute("odd", 77, |m| done(m.put_int(a::I, 1).put_float(a::F, 2.0))),
        // The type names another field than the one that is there.
        attribute("mistyped", 4, |m| done(m.put_message(a::G, inner.clone()))),
    ];
    let mut graph = Message::new(&schema::GRAPH);
    graph.put_message(
        g::NODE,
        node("Everything", &["x", "", "w"], &["y", "", "z"], kinds),
    );
    graph.put_message(g::NODE, node("Local", &["y", "sv"], &["q"], vec![]));
    graph.put_message(
        g::INITIALIZER,
        tensor("w", 1, |m| done(m.put_bytes(t::RAW_DATA, &[9; 20]))),
    );
    graph.put_message(
        g::INITIALIZER,
        tensor("d", 11, |m| {
            done(m.put_elements(t::DOUBLE_DATA, &[1, 2, 3, 4, 5]))
        }),
    );
    graph.put_message(
        g::INITIALIZER,
        tensor("u", 13, |m| {
            done(m.put_ints(t::UINT64_DATA, &[-1, 2, 3, 4, 5]))
        }),
    );
    graph
        .put_message(g::INPUT, info("x"))
        .put_message(g::INPUT, info("w"));
    graph
        .put_message(g::OUTPUT, info("q"))
        .put_message(g::OUTPUT, info("x"))
        .put_message(g::OUTPUT, info("q"));
    for name in ["z", "y", "nowhere", "d"] {
        graph.put_message(g::VALUE_INFO, info(name));
    }
    graph.put_message(g::SPARSE_INITIALIZER, sparse());
    let mut function = Message::new(&schema::FUNCTION);
    function
        .put_text(1, "Local")
        .put_text(4, "a")
        .put_text(4, "b")
        .put_text(5, "c")
        .put_text(6, "k");
    function.put_message(7, node("Mul", &["a", "b"], &["c"], vec![]));
    function.put_message(11, attribute("alpha", 1, |m| done(m.put_float(a::F, 0.5))));
    function.put_message(12, info("c"));
    let mut opset = Message::new(&schema::OPSET);
    opset.put_text(1, "").put_int(2, 21);
    let mut model = Message::new(&schema::MODEL);
    model
        .put_int(m::IR_VERSION, 10)
        .put_message(m::GRAPH, graph.canonical());
    model
        .put_message(m::OPSET_IMPORT, opset)
        .put_message(m::FUNCTIONS, function);
    let mut training = Message::new(&schema::TRAINING);
    training.put_message(1, inner);
    model.put_message(m::TRAINING_INFO, training);
    model.canonical()
}

fn write_and_round_trip(model: &Message) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weird.onnx");
    std::fs::write(&path, encode_to_vec(model, &[]).unwrap()).unwrap();
    round_trip(&path);
}

#[test]
fn every_construct_comes_back() {
    write_and_round_trip(&everything());
}

/// Moves, widens and adds fields all over a message, meaning kept.
fn disturb(message: &mut Message, seed: &mut dyn Iterator<Item = u8>) {
    let mut take = move || seed.next().unwrap_or(0);
    for at in 1..message.fields.len() {
        // Occurrences of one field keep their order, as that has a meaning.
        if take() > 200 && message.fields[at].number != message.fields[at - 1].number {
            message.fields.swap(at, at - 1);
        }
    }
    if take() > 200 {
        let mut bytes = Vec::new();
        put_tag(&mut bytes, 999, WireType::Varint, 0);
        put_varint(&mut bytes, 7, 4);
        let at = usize::from(take()) % (message.fields.len() + 1);
        message.fields.insert(
            at,
            Field::new(999, Value::Unknown(Blob::Owned(bytes.into()))),
        );
    }
    for spec in message.schema.fields {
        if take() > 240
            && !message.has(spec.number)
            && matches!(spec.kind, schema::Kind::Text)
            && !spec.repeated
        {
            message.put_text(spec.number, "");
        }
    }
    for field in &mut message.fields {
        if !matches!(field.value, Value::Run(_) | Value::Unknown(_)) {
            if take() > 240 {
                field.tag_width = 4;
            }
            if take() > 240 && !matches!(field.value, Value::Fixed32(_) | Value::Fixed64(_)) {
                field.width = 6;
            }
        }
        let kind = message.schema.field(field.number).map(|spec| spec.kind);
        let recoded = match (&field.value, kind) {
            (Value::Packed(_), Some(kind)) if take() > 200 => {
                let mut bits = Vec::new();
                crate::onnx::message::elements_of(&field.value, kind, &[], &mut bits).unwrap();
                Some(crate::onnx::message::elements_value(
                    field.number,
                    kind,
                    false,
                    &bits,
                ))
            }
            _ => None,
        };
        if let Some(value) = recoded {
            *field = Field::new(field.number, value);
        }
        if let Value::Message(inner) = &mut field.value {
            disturb(inner, &mut std::iter::from_fn(&mut || Some(take())));
        }
    }
}

proptest! {
    #[test]
    fn disturbed_models_come_back(seed in proptest::collection::vec(any::<u8>(), 1..2000)) {
        let mut model = everything();
        disturb(&mut model, &mut seed.into_iter().cycle().take(20_000));
        write_and_round_trip(&model);
    }

    #[test]
    fn damaged_models_never_panic(
        damage in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8),
        cut in proptest::option::weighted(0.1, any::<u16>()),
    ) {
        let mut bytes = encode_to_vec(&everything(), &[]).unwrap();
        for (at, byte) in damage {
            let at = usize::from(at) % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| usize::from(cut) % bytes.len()));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("damaged.onnx");
        std::fs::write(&path, &bytes).unwrap();
        match import(&path) {
            Ok(module) if verify(&module).is_ok() => round_trip(&path),
            Ok(_) => {}
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn truncated_models_are_errors() {
    let bytes = encode_to_vec(&everything(), &[]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("short.onnx");
    for end in 0..bytes.len() {
        std::fs::write(&path, &bytes[..end]).unwrap();
        let whole = decode(&bytes[..end], &schema::MODEL, Limits::default());
        match import(&path) {
            Err(_) => {}
            // A cut between fields of the root leaves a smaller model.
            Ok(_) => assert!(whole.is_ok()),
        }
    }
}
