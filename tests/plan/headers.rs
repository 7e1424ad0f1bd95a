//! The headers of the kernels' sources say what the table of kernels says.

use std::path::Path;

use hlrc::plan::kernels::KERNELS;
use hlrc::plan::kernels::header::headers;

#[test]
fn sources_have_the_parameters_of_the_table() {
    for kernel in KERNELS {
        let path = Path::new("kernels").join(format!("{}.cu", kernel.name));
        let source =
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let found = headers(&source);
        let header = found.iter().find(|h| h.name == kernel.name);
        let header =
            header.unwrap_or_else(|| panic!("{}: no `// kernel: {}`", path.display(), kernel.name));
        assert_eq!(header.abi, kernel.abi, "{}", path.display());
        assert_eq!(
            header.args,
            kernel.params(),
            "{}: parameters",
            path.display()
        );
        assert_eq!(
            header.block,
            kernel.block,
            "{}: threads of a block",
            path.display()
        );
        for define in kernel.define_list() {
            assert!(
                header.defines.iter().any(|d| d.name == define.name),
                "{}: `{}` is not among its defines",
                path.display(),
                define.name
            );
        }
        assert_eq!(
            header.defines.len(),
            kernel.define_list().len(),
            "{}: defines",
            path.display()
        );
    }
}
