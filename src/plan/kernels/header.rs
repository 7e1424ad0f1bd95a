//! Reads the lines of a kernel's header that say what the table says.
//!
//! ```text
//! // kernel: embed abi=1
//! // defines: FORMAT=0..4 BITS=0|2|3|4|8
//! // args: ids:const i32* y:f32* rows:i32
//! // block: 256
//! ```

use super::{Define, Param};

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The kernel's name.
    pub name: String,
    /// Version of its parameters.
    pub abi: u32,
    /// Its defines.
    pub defines: Vec<Define>,
    /// Its parameters.
    pub args: Vec<Param>,
    /// Threads of a block.
    pub block: u32,
}

/// Reads the headers of a source: one for each kernel in it. Lines of one kind that follow each other
/// are one list.
pub fn headers(source: &str) -> Vec<Header> {
    let mut found: Vec<Header> = Vec::new();
    for line in source.lines() {
        let Some((key, rest)) = line.strip_prefix("// ").and_then(|l| l.split_once(": ")) else {
            continue;
        };
        if key == "kernel" {
            let mut words = rest.split_whitespace();
            let name = words.next().unwrap_or_default().to_string();
            let abi = words.find_map(|w| w.strip_prefix("abi=")?.parse().ok());
            found.push(Header {
                name,
                abi: abi.unwrap_or(0),
                ..Header::default()
            });
            continue;
        }
        let Some(header) = found.last_mut() else {
            continue;
        };
        match key {
            "defines" => header.defines.extend(defines(rest)),
            "args" => header.args.extend(params(rest)),
            "block" => header.block = rest.trim().parse().unwrap_or(0),
            _ => {}
        }
    }
    found
}

/// Parameters of a list such as `x:const f32* rows:i32`.
pub fn params(text: &str) -> Vec<Param> {
    let text = text.replace(":const ", ":const·");
    let one = |word: &str| {
        let (name, ty) = word.split_once(':')?;
        let read_only = ty.starts_with("const·");
        let ty = ty.trim_start_matches("const·");
        Some(Param {
            name: name.to_string(),
            dtype: ty.trim_end_matches('*').to_string(),
            pointer: ty.ends_with('*'),
            read_only,
        })
    };
    text.split_whitespace().filter_map(one).collect()
}

/// Defines of a list such as `BITS=2|3|4 M=1..8`; commas may stand for bars.
pub fn defines(text: &str) -> Vec<Define> {
    let range = |word: &str| -> Option<(i64, i64)> {
        match word.split_once("..") {
            Some((a, b)) => Some((a.parse().ok()?, b.parse().ok()?)),
            None => word.parse().ok().map(|v| (v, v)),
        }
    };
    let one = |word: &str| {
        let (name, values) = word.split_once('=')?;
        Some(Define {
            name: name.to_string(),
            values: values.split(['|', ',']).filter_map(range).collect(),
        })
    };
    text.split_whitespace().filter_map(one).collect()
}
