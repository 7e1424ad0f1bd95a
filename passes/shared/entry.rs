//! Registration: a pass's documentation is the header of its own file.

/// Makes a pass file's `ENTRY` from its header, its options and its constructor.
///
/// The header's first line is the summary that lists show; the whole header is what
/// `hlrc-opt passes NAME` prints above the options. A name with hyphens needs its file stated:
/// `pass_entry!("two-words" in "two_words.rs", …)`. (`file!()` won't do: where this crate is a
/// dependency it is absolute, and `include_str!` starts at the folder of the pass.)
#[macro_export]
macro_rules! pass_entry {
    ($name:literal, $options:ty, $build:expr) => {
        $crate::pass_entry!(@ $name, concat!($name, ".rs"), $options, $build);
    };
    ($name:literal in $file:literal, $options:ty, $build:expr) => {
        $crate::pass_entry!(@ $name, $file, $options, $build);
    };
    (@ $name:literal, $file:expr, $options:ty, $build:expr) => {
        /// This pass in the registry.
        pub const ENTRY: $crate::pass::PassEntry = {
            use $crate::passes::shared::entry;
            const SOURCE: &str = include_str!($file);
            const LEN: usize = entry::header::<0>(SOURCE).1;
            const BYTES: &[u8; LEN] = &entry::header::<LEN>(SOURCE).0;
            const DOC: &str = entry::text(BYTES);
            $crate::pass::PassEntry {
                name: $name,
                summary: entry::first_line(DOC),
                doc: DOC,
                schema: &$crate::pass::entry::schema_of::<$options>,
                build: &|pairs| {
                    let options: $options = $crate::pass::entry::options(pairs)?;
                    ($build)(options)
                },
            }
        };
    };
}
pub use crate::pass_entry;

/// The `//!` lines that a source starts with, without their marks, and their length.
///
/// At most `N` bytes are kept; the length is of all.
pub const fn header<const N: usize>(source: &str) -> ([u8; N], usize) {
    let (source, mut out) = (source.as_bytes(), [0; N]);
    let (mut at, mut len) = (0, 0);
    while at + 2 < source.len()
        && source[at] == b'/'
        && source[at + 1] == b'/'
        && source[at + 2] == b'!'
    {
        at += 3;
        if at < source.len() && source[at] == b' ' {
            at += 1;
        }
        while at < source.len() {
            let byte = source[at];
            at += 1;
            if len < N {
                out[len] = byte;
            }
            len += 1;
            if byte == b'\n' {
                break;
            }
        }
    }
    (out, len)
}

/// Bytes as text; a source file is UTF-8, so nothing else can occur.
pub const fn text(bytes: &'static [u8]) -> &'static str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => "",
    }
}

/// The text up to its first line's end.
pub const fn first_line(text: &'static str) -> &'static str {
    let bytes = text.as_bytes();
    let mut end = 0;
    while end < bytes.len() && bytes[end] != b'\n' {
        end += 1;
    }
    text.split_at(end).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_lose_their_marks() {
        const SOURCE: &str = "//! One.\n//!\n//! Two é\n\nuse x;\n";
        const LEN: usize = header::<0>(SOURCE).1;
        const BYTES: &[u8; LEN] = &header::<LEN>(SOURCE).0;
        assert_eq!(text(BYTES), "One.\n\nTwo é\n");
        assert_eq!(first_line(text(BYTES)), "One.");
        assert_eq!(header::<0>("use x;").1, 0);
    }
}
