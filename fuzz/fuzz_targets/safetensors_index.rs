//! `model.safetensors.index.json`, beside two shards.
#![no_main]

use std::sync::OnceLock;

use hlrc::weights::FileCache;
use hlrc::weights::index::Checkpoint;
use hlrc_fuzz::file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static SHARDS: OnceLock<()> = OnceLock::new();
    SHARDS.get_or_init(|| {
        for (name, tensor) in [("a.safetensors", "x"), ("b.safetensors", "y")] {
            let json =
                format!(r#"{{"{tensor}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
            let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
            bytes.extend(json.bytes());
            bytes.push(7);
            file(name, &bytes);
        }
    });
    let path = file("model.safetensors.index.json", data);
    match Checkpoint::open_index(&path, &FileCache::new()) {
        Ok(checkpoint) => {
            for (shard, tensor) in checkpoint.tensors() {
                assert!(["a.safetensors", "b.safetensors"].contains(&shard.name.as_str()));
                let (again, _) = checkpoint
                    .get(&tensor.name)
                    .expect("a tensor that is listed");
                assert_eq!(again.name, shard.name);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
