//! Files beside a model: `tokenizer.json`, configurations of tokenizers, chat templates. The first byte says which.
#![no_main]

use std::path::Path;

use hlrc::text::{ChatTemplate, Decode, Detokenizer, Special, Tokenizer};
use libfuzzer_sys::fuzz_target;

const TEXT: &str = "Once upon a time, 12 é \u{1f600}\n";

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    match kind {
        b'c' => {
            if let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(data) {
                let mut special = Special::default();
                let _ = special.of_tokenizer(&object);
                let _ = special.of_model(&object);
            }
        }
        b'j' => {
            // Read, not rendered: an endless one would leave its thread behind.
            let source = String::from_utf8_lossy(data).into_owned();
            let _ = ChatTemplate::new(Path::new("x.jinja"), source, &Special::default());
        }
        _ => {
            let tokenizer = Tokenizer::new(Path::new("x.json"), data, Special::default());
            let Ok(tokenizer) = tokenizer else {
                return;
            };
            let Ok(ids) = tokenizer.encode_with_special(TEXT) else {
                return;
            };
            let _ = tokenizer.text(&ids);
            let mut stream = Detokenizer::new(&tokenizer, &[]);
            for id in ids {
                let _ = stream.push(id);
            }
            let _ = stream.finish();
        }
    }
});
