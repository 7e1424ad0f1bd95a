//! Checkpoints of one or many safetensors shards.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer};

use super::safetensors::{StringPairs, duplicate};
use super::{Defect, FileCache, Header, MappedFile, Result, TensorInfo, WeightsError};

/// Largest index that is read, in bytes.
pub const MAX_INDEX_BYTES: u64 = 100_000_000;

/// One safetensors file of a checkpoint.
#[derive(Debug, Clone)]
pub struct Shard {
    /// File name, without directory.
    pub name: String,
    /// The mapped file.
    pub file: Arc<MappedFile>,
    /// Its verified header.
    pub header: Header,
}

/// All shards of a checkpoint, their headers verified, no data read.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Shards in the order of their names.
    pub shards: Vec<Shard>,
    /// Tensors that a shard holds and the index doesn't list, sorted.
    pub unlisted: Vec<String>,
    /// The index file, if the checkpoint has one.
    pub index: Option<PathBuf>,
    places: HashMap<String, (usize, usize)>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, an `.index.json`, or a directory of either.
    ///
    /// In a directory the first of these counts: `model.safetensors.index.json`,
    /// `model.safetensors`, a sole `*.safetensors.index.json`, a sole
    /// `*.safetensors`. Cost: the headers.
    ///
    /// # Errors
    /// [`WeightsError::Format`] naming file and tensor; [`WeightsError::Io`].
    pub fn open(path: &Path, cache: &FileCache) -> Result<Checkpoint> {
        let path = if path.is_dir() {
            find_in_directory(path)?
        } else {
            path.to_path_buf()
        };
        if path.extension().is_some_and(|e| e == "json") {
            Checkpoint::open_index(&path, cache)
        } else {
            let shard = open_shard(&path, cache)?;
            Checkpoint::assemble(&path, vec![shard], None)
        }
    }

    /// Opens the shards that an index names, all beside the index.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_index(path: &Path, cache: &FileCache) -> Result<Checkpoint> {
        let file = MappedFile::open(path)?;
        let weight_map = read_weight_map(path, &file)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut names: Vec<&str> = weight_map.iter().map(|(_, shard)| shard.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let mut shards = Vec::with_capacity(names.len());
        for name in names {
            if !is_plain_name(name) {
                let short = name.chars().take(120).collect();
                return Err(WeightsError::format(
                    path,
                    None,
                    Defect::UnsafeShardName(short),
                ));
            }
            let shard = directory.join(name);
            if !shard.exists() {
                let defect = Defect::MissingShard(name.to_owned());
                return Err(WeightsError::format(path, None, defect));
            }
            shards.push(open_shard(&shard, cache)?);
        }
        Checkpoint::assemble(path, shards, Some(weight_map))
    }

    fn assemble(
        path: &Path,
        shards: Vec<Shard>,
        weight_map: Option<Vec<(String, String)>>,
    ) -> Result<Checkpoint> {
        let mut places: HashMap<String, (usize, usize)> = HashMap::new();
        for (s, shard) in shards.iter().enumerate() {
            for (t, tensor) in shard.header.tensors.iter().enumerate() {
                if let Some((first, _)) = places.insert(tensor.name.clone(), (s, t)) {
                    let first = shards.get(first).map(|shard| shard.name.clone());
                    let defect = Defect::InTwoShards {
                        first: first.unwrap_or_default(),
                        second: shard.name.clone(),
                    };
                    return Err(WeightsError::format(path, Some(&tensor.name), defect));
                }
            }
        }
        let mut unlisted = Vec::new();
        if let Some(map) = &weight_map {
            for (tensor, wanted) in map {
                let place = places.get(tensor).and_then(|&(s, _)| shards.get(s));
                if place.is_none_or(|shard| shard.name != *wanted) {
                    let defect = Defect::NotInShard(wanted.clone());
                    return Err(WeightsError::format(path, Some(tensor), defect));
                }
            }
            let listed: HashSet<&str> = map.iter().map(|(tensor, _)| tensor.as_str()).collect();
            let rest = places.keys().filter(|name| !listed.contains(name.as_str()));
            unlisted.extend(rest.cloned());
            unlisted.sort_unstable();
        }
        Ok(Checkpoint {
            shards,
            unlisted,
            index: weight_map.map(|_| path.to_path_buf()),
            places,
        })
    }

    /// The tensor called `name` and the shard that holds it.
    pub fn get(&self, name: &str) -> Option<(&Shard, &TensorInfo)> {
        let &(s, t) = self.places.get(name)?;
        let shard = self.shards.get(s)?;
        Some((shard, shard.header.tensors.get(t)?))
    }

    /// All tensors, shard by shard, in the order of their data.
    pub fn tensors(&self) -> impl Iterator<Item = (&Shard, &TensorInfo)> {
        let of = |shard| move |tensor| (shard, tensor);
        self.shards
            .iter()
            .flat_map(move |shard| shard.header.tensors.iter().map(of(shard)))
    }
}

fn open_shard(path: &Path, cache: &FileCache) -> Result<Shard> {
    let file = cache.open(path)?;
    let header = Header::read(&file)?;
    let name = path.file_name().unwrap_or_default();
    Ok(Shard {
        name: name.to_string_lossy().into_owned(),
        file,
        header,
    })
}

/// (tensor, shard) pairs of an index, in file order.
fn read_weight_map(path: &Path, file: &MappedFile) -> Result<Vec<(String, String)>> {
    let fault = |defect| WeightsError::format(path, None, defect);
    let json = |message| fault(Defect::Json { message });
    let (size, limit) = (file.len(), MAX_INDEX_BYTES);
    if size > limit {
        return Err(fault(Defect::IndexTooLong { size, limit }));
    }
    let index: RawIndex = serde_json::from_slice(file.bytes()?).map_err(|e| json(e.to_string()))?;
    let tensors = index.weight_map.iter().map(|(tensor, _)| tensor.as_str());
    match duplicate(tensors) {
        Some(name) => Err(WeightsError::format(
            path,
            Some(name),
            Defect::DuplicateName,
        )),
        None => Ok(index.weight_map),
    }
}

/// Of an index, only the map matters; `metadata.total_size` is often wrong.
#[derive(Deserialize)]
struct RawIndex {
    #[serde(deserialize_with = "string_pairs")]
    weight_map: Vec<(String, String)>,
}

fn string_pairs<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<(String, String)>, D::Error> {
    StringPairs.deserialize(d)
}

/// True for a name that can't lead out of the directory of the index.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
    plain && parts.next().is_none() && !name.contains(['/', '\\', ':', '\0'])
}

fn find_in_directory(directory: &Path) -> Result<PathBuf> {
    for name in ["model.safetensors.index.json", "model.safetensors"] {
        let path = directory.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let mut names = Vec::new();
    let entries = directory.read_dir();
    for entry in entries.map_err(|e| WeightsError::io("list", directory, e))? {
        let entry = entry.map_err(|e| WeightsError::io("list", directory, e))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort_unstable();
    for suffix in [".safetensors.index.json", ".safetensors"] {
        let mut found = names.iter().filter(|name| name.ends_with(suffix));
        match (found.next(), found.count()) {
            (Some(name), 0) => return Ok(directory.join(name)),
            (Some(name), more) => {
                let found = format!("{} `*{suffix}` files (`{name}`, ...)", more + 1);
                let defect = Defect::NoCheckpoint { found };
                return Err(WeightsError::format(directory, None, defect));
            }
            (None, _) => {}
        }
    }
    let found = "no .safetensors file".to_owned();
    Err(WeightsError::format(
        directory,
        None,
        Defect::NoCheckpoint { found },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of u8 tensors, one byte each.
    fn shard(names: &[&str]) -> Vec<u8> {
        let entry = |(i, name): (usize, &&str)| {
            let end = i + 1;
            format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{end}]}}"#)
        };
        let entries: Vec<String> = names.iter().enumerate().map(entry).collect();
        let json = format!("{{{}}}", entries.join(","));
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.bytes());
        bytes.extend(names.iter().map(|_| 1));
        bytes
    }

    fn open(files: &[(&str, Vec<u8>)]) -> Result<Checkpoint> {
        let dir = tempfile::tempdir().expect("dir");
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).expect("write");
        }
        Checkpoint::open(dir.path(), &FileCache::new())
    }

    fn index(map: &str) -> (&'static str, Vec<u8>) {
        let json = format!(r#"{{"metadata":{{"total_size":"odd"}},"weight_map":{map}}}"#);
        ("model.safetensors.index.json", json.into_bytes())
    }

    fn defect(result: Result<Checkpoint>) -> (Option<String>, Defect) {
        match result.expect_err("must be refused") {
            WeightsError::Format { tensor, defect, .. } => (tensor, *defect),
            other => panic!("unexpected: {other}"),
        }
    }

    #[test]
    fn sharded_checkpoints_open() {
        let checkpoint = open(&[
            index(r#"{"b":"2.safetensors","a":"1.safetensors"}"#),
            ("1.safetensors", shard(&["a", "spare"])),
            ("2.safetensors", shard(&["b"])),
            ("model.safetensors", shard(&["stray"])),
        ])
        .expect("opens");
        let names: Vec<&str> = checkpoint.tensors().map(|(_, t)| t.name.as_str()).collect();
        assert_eq!(names, ["a", "spare", "b"]);
        assert_eq!(checkpoint.unlisted, ["spare"]);
        let (shard, tensor) = checkpoint.get("b").expect("b");
        assert_eq!((shard.name.as_str(), tensor.bytes), ("2.safetensors", 1));
        assert!(checkpoint.get("stray").is_none());
    }

    #[test]
    fn a_directory_may_hold_one_file_of_any_name() {
        assert!(open(&[("x.safetensors", shard(&["a"])), ("config.json", vec![])]).is_ok());
        let two = open(&[
            ("x.safetensors", shard(&["a"])),
            ("y.safetensors", shard(&["b"])),
        ]);
        assert!(matches!(defect(two).1, Defect::NoCheckpoint { .. }));
        assert!(matches!(defect(open(&[])).1, Defect::NoCheckpoint { .. }));
    }

    #[test]
    fn contradictions_are_refused_with_their_place() {
        let one = ("1.safetensors", shard(&["a"]));
        let map = index(r#"{"a":"1.safetensors","b":"2.safetensors"}"#);
        let missing = defect(open(&[map.clone(), one.clone()]));
        assert_eq!(
            missing,
            (None, Defect::MissingShard("2.safetensors".into()))
        );

        let absent = defect(open(&[
            map.clone(),
            one.clone(),
            ("2.safetensors", shard(&["c"])),
        ]));
        assert_eq!(absent.0.as_deref(), Some("b"));
        assert!(matches!(absent.1, Defect::NotInShard(_)));

        let twice = defect(open(&[
            map,
            one.clone(),
            ("2.safetensors", shard(&["b", "a"])),
        ]));
        assert_eq!(twice.0.as_deref(), Some("a"));
        assert!(matches!(twice.1, Defect::InTwoShards { .. }));

        for bad in [
            r#"{"a":"1.safetensors","a":"1.safetensors"}"#,
            r#"{"a":1}"#,
            "[]",
            "{",
        ] {
            let defect = defect(open(&[index(bad), one.clone()])).1;
            assert!(
                matches!(defect, Defect::Json { .. } | Defect::DuplicateName),
                "{defect}"
            );
        }
    }

    #[test]
    fn shard_names_stay_in_their_directory() {
        for bad in [
            "../x",
            "/etc/passwd",
            "a/b",
            "a\\\\b",
            "",
            ".",
            "..",
            "./x",
            "x/",
            "c:x",
        ] {
            let result = open(&[index(&format!(r#"{{"a":"{bad}"}}"#))]);
            assert!(
                matches!(defect(result).1, Defect::UnsafeShardName(_)),
                "{bad}"
            );
        }
    }
}
