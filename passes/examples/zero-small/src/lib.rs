//! The plugin of the tutorial in `docs/plugins.md`.

mod zero_small;

hlrc_pass::plugin!(zero_small::ENTRY);
