use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{Checkpoint, FileCache};
use super::*;
use crate::weights::Digest;

/// Name, shape and content of the tensors of these tests.
fn tensors(count: usize) -> Vec<(String, Vec<u64>, Vec<u8>)> {
    let tensor = |i: usize| {
        let len = (i * 37) % 61;
        let bytes = (0..len).map(|j| (i * 13 + j) as u8).collect();
        (format!("layer.{i}.\"w\""), vec![len as u64], bytes)
    };
    (0..count).map(tensor).collect()
}

fn options(shard_size: u64, header_reserve: u64) -> WriterOptions {
    WriterOptions {
        shard_size,
        header_reserve,
        metadata: vec![("format".into(), "pt".into())],
        ..WriterOptions::default()
    }
}

fn write_from(writer: &mut ShardWriter, from: usize, to: usize) -> Result<()> {
    for (name, shape, bytes) in tensors(to).iter().skip(from) {
        writer.begin(name, DType::U8, shape)?;
        bytes.chunks(7).try_for_each(|part| writer.write(part))?;
        writer.end()?;
    }
    Ok(())
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = dir.read_dir().expect("list").map(|e| e.expect("entry"));
    let file = |e: std::fs::DirEntry| {
        let bytes = std::fs::read(e.path()).expect("read");
        (e.file_name().to_string_lossy().into_owned(), bytes)
    };
    entries.map(file).collect()
}

/// The files of a run without interruption.
fn straight(options: &WriterOptions, count: usize) -> (BTreeMap<String, Vec<u8>>, Finished) {
    let dir = tempfile::tempdir().expect("dir");
    let mut writer = ShardWriter::create(dir.path(), options.clone()).expect("create");
    write_from(&mut writer, 0, count).expect("write");
    let finished = writer.finish().expect("finish");
    check_readable(dir.path(), &finished, count);
    (files(dir.path()), finished)
}

fn check_readable(dir: &Path, finished: &Finished, count: usize) {
    for info in &finished.files {
        let bytes = std::fs::read(dir.join(&info.file)).expect("read");
        assert_eq!(info.bytes, bytes.len() as u64);
        assert_eq!(info.sha256, Digest::of(&bytes).to_hex());
    }
    let checkpoint = Checkpoint::open(dir, &FileCache::new()).expect("valid");
    for ((name, shape, bytes), placed) in tensors(count).iter().zip(&finished.tensors) {
        let (shard, tensor) = checkpoint.get(name).expect("present");
        assert_eq!(&tensor.shape, shape);
        assert_eq!(
            shard.file.slice(tensor.offset, tensor.bytes).expect("read"),
            bytes
        );
        assert_eq!(shard.header.data_start % 8, 0);
        let file = finished.files.get(placed.file).map(|f| &f.file);
        assert_eq!((file, placed.offset), (Some(&shard.name), tensor.offset));
    }
    assert_eq!(checkpoint.tensors().count(), count);
}

#[test]
fn one_shard_has_the_plain_name() {
    let (files, finished) = straight(&options(1 << 20, 1 << 16), 10);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["model.safetensors"]);
    assert_eq!(finished.tensors.len(), 10);
    assert_eq!(finished.tensors.first().map(|t| t.offset), Some(1 << 16));
    let (_, empty) = straight(&options(1 << 20, 0), 0);
    assert_eq!(empty.files.len(), 1);
}

#[test]
fn many_shards_have_an_index() {
    let (files, finished) = straight(&options(100, 4096), 30);
    assert!(finished.files.len() > 5);
    assert!(files.contains_key("model.safetensors.index.json"));
    let count = finished.files.len() - 1;
    assert!(files.contains_key(&format!("model-00001-of-{count:05}.safetensors")));
    assert_eq!(files.len(), finished.files.len());
}

#[test]
fn a_small_reservation_only_costs_a_rewrite() {
    for shard_size in [200, 1 << 20] {
        let (_, small) = straight(&options(shard_size, 0), 30);
        let (_, large) = straight(&options(shard_size, 1 << 16), 30);
        assert_eq!(small.tensors.len(), large.tensors.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Killed at any moment, continued from any journal: the same bytes.
    #[test]
    fn interruption_leaves_no_trace(
        shard_size in prop_oneof![Just(100_u64), Just(400), Just(1 << 20)],
        reserve in prop_oneof![Just(0_u64), Just(500), Just(8192)],
        journaled in 0..20_usize,
        beyond in 0..20_usize,
        finished in any::<bool>(),
    ) {
        let options = options(shard_size, reserve);
        let (expected, _) = straight(&options, 25);
        let dir = tempfile::tempdir().expect("dir");
        let mut writer = ShardWriter::create(dir.path(), options.clone()).expect("create");
        write_from(&mut writer, 0, journaled).expect("write");
        writer.position().expect("flush");
        let journal = writer.entries().to_vec();
        let reached = (journaled + beyond).min(25);
        write_from(&mut writer, journaled, reached).expect("write");
        if finished {
            // Killed after the final names were given, before the journal said so.
            writer.finish().expect("finish");
        } else {
            writer.begin("in flight", DType::U8, &[1000]).expect("begin");
            writer.write(&[1; 500]).expect("write");
            drop(writer);
        }
        let mut writer = ShardWriter::resume(dir.path(), options, journal).expect("resume");
        write_from(&mut writer, journaled, 25).expect("write");
        writer.finish().expect("finish");
        prop_assert_eq!(files(dir.path()), expected);
    }
}

#[test]
fn truncation_goes_back_to_a_position() {
    let options = options(150, 256);
    let (expected, _) = straight(&options, 20);
    let dir = tempfile::tempdir().expect("dir");
    let mut writer = ShardWriter::create(dir.path(), options).expect("create");
    write_from(&mut writer, 0, 8).expect("write");
    let position = writer.position().expect("flush");
    for name in ["wrong", "failed"] {
        writer
            .tensor(name, DType::U8, &[100], &[9; 100])
            .expect("write");
        writer.begin("half", DType::U8, &[100]).expect("begin");
        writer.write(&[9; 30]).expect("write");
        writer = writer.truncate_to(position).expect("truncate");
        assert_eq!(writer.position().expect("flush"), position);
    }
    write_from(&mut writer, 8, 20).expect("write");
    writer.finish().expect("finish");
    assert_eq!(files(dir.path()), expected);

    let dir = tempfile::tempdir().expect("dir");
    let writer = ShardWriter::create(dir.path(), WriterOptions::default()).expect("create");
    assert!(writer.truncate_to(position).is_err());
}

#[test]
fn misuse_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let mut writer = ShardWriter::create(dir.path(), options(1000, 256)).expect("create");
    assert!(writer.write(&[1]).is_err() && writer.end().is_err());
    assert!(writer.begin("a", DType::I4, &[2]).is_err());
    assert!(writer.begin("a", DType::String, &[2]).is_err());
    assert!(writer.begin("a", DType::F4E2M1, &[3]).is_err());
    assert!(writer.begin("a", DType::F32, &[1 << 40, 1 << 40]).is_err());
    assert!(writer.begin("__metadata__", DType::U8, &[1]).is_err());
    writer.begin("a", DType::F16, &[2]).expect("begin");
    assert!(writer.begin("b", DType::U8, &[1]).is_err());
    assert!(writer.write(&[0; 5]).is_err());
    writer.write(&[0; 4]).expect("write");
    let entry = writer.end().expect("end");
    assert!(writer.begin("a", DType::U8, &[1]).is_err());
    let text = serde_json::to_string(&entry).expect("journal");
    assert_eq!(
        serde_json::from_str::<Entry>(&text).expect("journal"),
        entry
    );
    writer.begin("b", DType::U8, &[3]).expect("begin");
    writer.write(&[0; 2]).expect("write");
    let message = writer.end().expect_err("short").to_string();
    assert!(
        message.contains("\"b\"") && message.contains("2 of 3"),
        "{message}"
    );
}

#[test]
fn unusable_places_are_typed_errors() {
    let dir = tempfile::tempdir().expect("dir");
    let absent = dir.path().join("absent");
    let error = ShardWriter::create(&absent, WriterOptions::default()).expect_err("no directory");
    assert!(error.to_string().contains("absent"));
    let first = ShardWriter::create(dir.path(), WriterOptions::default()).expect("create");
    assert!(
        ShardWriter::create(dir.path(), WriterOptions::default()).is_err(),
        "in use"
    );
    drop(first);

    let mut entry = Entry {
        name: "a".into(),
        dtype: DType::U8,
        shape: vec![10],
        shard: 0,
        offset: 0,
        bytes: 10,
    };
    let resume = |entry: &Entry| {
        let entries = vec![entry.clone()];
        ShardWriter::resume(dir.path(), WriterOptions::default(), entries)
    };
    assert!(resume(&entry).is_err(), "the file lacks the bytes");
    entry.offset = 1;
    assert!(resume(&entry).is_err(), "the journal has a gap");
    entry.offset = 0;
    entry.shard = 1;
    assert!(resume(&entry).is_err(), "the journal skips a shard");
}

#[test]
fn a_full_disk_is_a_typed_error() {
    let full = Path::new("/dev/full");
    if !full.exists() {
        eprintln!("skipped: there is no /dev/full");
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    let link = dir.path().join("model-00001.safetensors");
    std::os::unix::fs::symlink(full, &link).expect("link");
    let error = std::fs::write(&link, [0; 9]).expect_err("full");
    let error = WeightsError::io("write", &link, error).to_string();
    assert!(
        error.contains("free some space") && error.contains("00001"),
        "{error}"
    );
}
