use proptest::prelude::*;

use super::*;

/// A file with this header text and so many bytes of data.
fn file(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Header> {
    Header::parse(Path::new("x.safetensors"), bytes, bytes.len() as u64)
}

fn defect(bytes: &[u8]) -> (Option<String>, Defect) {
    match parse(bytes).expect_err("must be refused") {
        WeightsError::Format { tensor, defect, .. } => (tensor, *defect),
        other => panic!("unexpected: {other}"),
    }
}

/// The defect of a file whose header holds these entries.
fn entries(json: &str, data: usize) -> (Option<String>, Defect) {
    defect(&file(&format!("{{{json}}}"), data))
}

const A: &str = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
const B: &str = r#""b":{"dtype":"U8","shape":[2,2],"data_offsets":[8,12]}"#;

#[test]
fn a_valid_file() {
    let json = format!(r#"{{"__metadata__":{{"format":"pt","é":"\n"}},{B},{A}}}   "#);
    let header = parse(&file(&json, 12)).expect("valid");
    let start = 8 + json.len() as u64;
    assert_eq!(header.data_start, start);
    let names: Vec<&str> = header.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let b = header.tensor("b").expect("b");
    assert_eq!(
        (b.offset, b.bytes, b.shape.as_slice()),
        (start + 8, 4, &[2, 2][..])
    );
    let pairs = [("format", "pt"), ("é", "\n")];
    assert_eq!(
        header.metadata,
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
}

#[test]
fn scalars_and_empty_tensors() {
    let json = r#"{"z":{"dtype":"F32","shape":[0,9],"data_offsets":[4,4]},
        "s":{"data_offsets":[0,4],"shape":[],"dtype":"F32"},
        "y":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}}"#;
    let header = parse(&file(json, 4)).expect("valid");
    assert_eq!(header.tensors.len(), 3);
    assert!(parse(&file("{}", 0)).expect("valid").tensors.is_empty());
}

#[test]
fn bad_lengths() {
    assert_eq!(defect(b"").1, Defect::NoHeader { size: 0 });
    assert_eq!(defect(b"1234567").1, Defect::NoHeader { size: 7 });
    let limit = MAX_HEADER_BYTES;
    for claimed in [limit + 1, 4 << 30, u64::MAX] {
        let refused = defect(&[&claimed.to_le_bytes()[..], b"{}"].concat()).1;
        assert_eq!(refused, Defect::HeaderTooLong { claimed, limit });
    }
    let short = defect(&[&9_u64.to_le_bytes()[..], b"{}"].concat()).1;
    let (claimed, available) = (9, 2);
    assert_eq!(short, Defect::HeaderTruncated { claimed, available });
}

#[test]
fn other_formats_are_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    for bytes in [
        &pointer[..],
        b"GGUF\x03\0\0\0....",
        b"PK\x03\x04...........",
        b"\x80\x02}q",
    ] {
        assert!(matches!(defect(bytes).1, Defect::OtherFormat { .. }));
    }
    // A header of 0x0280 bytes is no pickle.
    let mut json = "{}".to_owned();
    json.push_str(&" ".repeat(0x0280 - 2));
    assert!(parse(&file(&json, 0)).is_ok());
}

#[test]
fn bad_json() {
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    let texts = [
        "",
        " {}",
        "[]",
        "{",
        "{}x",
        "{}{}",
        "{\"a\":1}",
        "{\"a\":{}}",
        "null",
        &deep,
        r#"{"a":{"dtype":"U8","shape":[1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":0}}"#,
        r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}}"#,
        r#"{"__metadata__":{"k":1}}"#,
        r#"{"__metadata__":{"k":"1","k":"2"}}"#,
        r#"{"__metadata__":[]}"#,
        r#"{"__metadata__":{},"__metadata__":{}}"#,
    ];
    for text in texts {
        let (tensor, refused) = defect(&file(text, 1));
        assert!(matches!(refused, Defect::Json { .. }), "{text}: {refused}");
        let named = text.starts_with("{\"a\"");
        assert_eq!(tensor.as_deref(), named.then_some("a"), "{text}");
    }
    let mut bytes = file("{\"aaaa\":1}", 0);
    bytes[11] = 0xFF;
    assert_eq!(defect(&bytes).1, Defect::NotUtf8 { at: 3 });
}

#[test]
fn bad_entries() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#""a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let refused = |dtype, shape, offsets| {
        let (tensor, defect) = entries(&entry(dtype, shape, offsets), 8);
        assert_eq!(tensor.as_deref(), Some("a"));
        defect
    };
    assert!(matches!(
        refused("F33", "[2]", "[0,8]"),
        Defect::UnknownDType(_)
    ));
    assert!(matches!(
        refused("f32", "[2]", "[0,8]"),
        Defect::UnknownDType(_)
    ));
    for shape in [
        "[4294967296,4294967296]",
        "[9223372036854775807]",
        "[4294967296,4294967296,0]",
    ] {
        assert!(
            matches!(refused("F32", shape, "[0,8]"), Defect::ShapeOverflow(_)),
            "{shape}"
        );
    }
    assert!(matches!(
        refused("F4", "[3]", "[0,2]"),
        Defect::PartialByte { elements: 3, .. }
    ));
    assert!(matches!(
        refused("F32", "[2]", "[8,0]"),
        Defect::ReversedOffsets { .. }
    ));
    assert!(matches!(
        refused("F32", "[3]", "[0,8]"),
        Defect::SizeMismatch { .. }
    ));
    let truncated = refused("F32", "[4]", "[0,16]");
    let (end, available) = (16, 8);
    assert_eq!(truncated, Defect::DataTruncated { end, available });
    let top = "[18446744073709551607,18446744073709551615]";
    assert!(matches!(
        refused("F32", "[2]", top),
        Defect::DataTruncated { .. }
    ));
}

#[test]
fn bad_cover() {
    let twice = entries(&format!("{A},{A}"), 8);
    assert_eq!(twice, (Some("a".into()), Defect::DuplicateName));

    let overlap = r#""o":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}"#;
    let (tensor, refused) = entries(&format!("{A},{overlap}"), 10);
    let other = "a".to_owned();
    let (begin, end) = (6, 8);
    assert_eq!(tensor.as_deref(), Some("o"));
    assert_eq!(refused, Defect::Overlap { other, begin, end });

    let (begin, end) = (0, 8);
    assert_eq!(entries(B, 12).1, Defect::Hole { begin, end });
    let (begin, end) = (8, 9);
    assert_eq!(entries(A, 9).1, Defect::Hole { begin, end });
    let (begin, end) = (0, 1);
    assert_eq!(defect(&file("{}", 1)).1, Defect::Hole { begin, end });
}

#[test]
fn messages_say_what_where_and_what_to_do() {
    let bytes = file(&format!("{{{A}}}"), 4);
    let message = parse(&bytes).expect_err("truncated").to_string();
    for part in ["x.safetensors", "\"a\"", "8", "4", "fetch it again"] {
        assert!(message.contains(part), "{message}");
    }
    let long = format!("{{\"{}\":0}}", "n".repeat(1_000_000));
    let message = parse(&file(&long, 0)).expect_err("bad").to_string();
    assert!(message.len() < 1000, "{}", message.len());
}

#[test]
fn every_truncation_and_bit_flip_is_survived() {
    let bytes = file(&format!("{{{A},{B}}}"), 12);
    assert!(parse(&bytes).is_ok());
    for len in 0..bytes.len() {
        assert!(
            parse(bytes.get(..len).unwrap_or_default()).is_err(),
            "{len}"
        );
    }
    for bit in 0..(bytes.len() - 12) * 8 {
        let mut flipped = bytes.clone();
        if let Some(byte) = flipped.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
        check_sound(&flipped);
    }
}

/// What an accepted header says must lie within the file and cover it.
fn check_sound(bytes: &[u8]) {
    if let Ok(header) = parse(bytes) {
        let mut at = header.data_start;
        for tensor in &header.tensors {
            assert_eq!(tensor.offset, at);
            assert_eq!(
                tensor.dtype.bytes_for_shape(&tensor.shape),
                Some(tensor.bytes)
            );
            at += tensor.bytes;
        }
        assert_eq!(at, bytes.len() as u64);
    }
}

/// JSON pieces that come near to a header.
fn piece() -> impl Strategy<Value = String> {
    let number = prop_oneof![Just(0), 0..20_u64, any::<u64>()];
    let name = prop_oneof![Just("a"), Just("b"), Just("__metadata__"), Just("\\u0000")];
    let dtype = prop_oneof![
        Just("F32"),
        Just("U8"),
        Just("F4"),
        Just("F6_E2M3"),
        Just("X")
    ];
    let shape = prop::collection::vec(number.clone(), 0..4);
    (name, dtype, shape, number.clone(), number).prop_map(|(name, dtype, shape, begin, end)| {
        format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_sound(&bytes);
    }

    #[test]
    fn arbitrary_headers(json in "[{}\\[\\]\",:0-9a-z_ ]{0,80}", data in 0..9_usize) {
        check_sound(&file(&json, data));
        check_sound(&file(&format!("{{{json}}}"), data));
    }

    #[test]
    fn nearly_valid(pieces in prop::collection::vec(piece(), 0..5), data in 0..40_usize) {
        check_sound(&file(&format!("{{{}}}", pieces.join(",")), data));
    }

    #[test]
    fn mutated(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = file(&format!("{{{A},{B}}}"), 12);
        for (at, value) in edits {
            let at = at.index(bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        check_sound(&bytes);
    }

    #[test]
    fn valid_layouts_are_accepted(sizes in prop::collection::vec(0..50_u64, 0..12), pad in 0..9_usize) {
        let mut at = 0;
        let mut entries = Vec::new();
        for (i, size) in sizes.iter().enumerate() {
            let end = at + 2 * size;
            entries.push(format!(r#""t{i}":{{"dtype":"BF16","shape":[{size}],"data_offsets":[{at},{end}]}}"#));
            at = end;
        }
        let json = format!("{{{}}}{}", entries.join(","), " ".repeat(pad));
        let header = parse(&file(&json, at as usize)).expect("valid");
        prop_assert_eq!(header.tensors.len(), sizes.len());
    }
}
