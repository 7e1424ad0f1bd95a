//! Kernel sources as one file each, for a compiler that has no folder to include from.

/// A source with the headers that it includes in the place where each is first included; files by
/// their path below `kernels/`. `None` for an unknown one.
///
/// Headers that are not among the files, those of the compiler and of the emulation, stay included.
pub fn flattened(path: &str, files: &[(&str, &str)]) -> Option<String> {
    let mut text = String::new();
    append(path, files, &mut Vec::new(), &mut text)?;
    Some(text)
}

fn append(
    path: &str,
    files: &[(&str, &str)],
    included: &mut Vec<String>,
    text: &mut String,
) -> Option<()> {
    let (_, file) = files.iter().find(|(p, _)| *p == path)?;
    included.push(path.to_string());
    let folder = path
        .rsplit_once('/')
        .map_or(String::new(), |(folder, _)| format!("{folder}/"));
    for line in file.lines() {
        let quoted = line.trim().strip_prefix("#include \"");
        let header = quoted
            .and_then(|rest| rest.strip_suffix('"'))
            .map(|h| format!("{folder}{h}"));
        match header {
            Some(header) if included.contains(&header) => {}
            Some(header) if files.iter().any(|(p, _)| *p == header) => {
                append(&header, files, included, text)?;
            }
            // Each file is there once: nothing is left for it to do.
            _ if line.trim() == "#pragma once" => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_stand_where_they_are_first_included() {
        let files = [
            (
                "a.cu",
                "#include \"common/x.cuh\"\n#include \"common/y.cuh\"\nint a;\n",
            ),
            ("common/x.cuh", "#pragma once\n#include <cuda.h>\nint x;"),
            (
                "common/y.cuh",
                "#pragma once\n#include \"x.cuh\"\n#include \"../emu/e.h\"\nint y;",
            ),
        ];
        let text = flattened("a.cu", &files).expect("known");
        assert_eq!(
            text,
            "#include <cuda.h>\nint x;\n#include \"../emu/e.h\"\nint y;\nint a;\n"
        );
        assert_eq!(flattened("b.cu", &files), None);
    }

    #[test]
    fn kernels_stand_alone() {
        for kernel in crate::plan::kernels::KERNELS {
            let source = crate::plan::kernels::flattened(kernel.name).expect("a source");
            let left: Vec<&str> = source
                .lines()
                .filter(|l| l.trim_start().starts_with("#include \""))
                .collect();
            assert_eq!(left, ["#include \"../emu/hlrc_emu.h\""], "{}", kernel.name);
        }
    }
}
