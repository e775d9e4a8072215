//! What a guide tells its reader to type, so that a test can follow it to the letter.
//!
//! Takes the name of a guide in `docs/guides`, or the path of another document; gives its blocks of one
//! language, and the flags of the daemon. It runs nothing.

use std::{fs, path::Path};

use super::{LabError, Result};

/// A guide of `docs/guides`.
pub(crate) struct Guide {
    name: &'static str,
    text: String,
}

impl Guide {
    /// Reads the guide.
    pub(crate) fn read(name: &'static str) -> Result<Self> {
        Self::read_in("docs/guides", name)
    }

    /// Reads another document, by its path from the top of the tree.
    pub(crate) fn document(path: &'static str) -> Result<Self> {
        Self::read_in("", path)
    }

    fn read_in(directory: &str, name: &'static str) -> Result<Self> {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let path = top.join(directory).join(name);
        let text = fs::read_to_string(&path)
            .map_err(LabError::while_trying(format!("read {}", path.display())))?;
        Ok(Self { name, text })
    }

    /// Whether it has this text, as what Refract says is quoted in its tables.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    /// The blocks fenced as `language`, in their order.
    pub(crate) fn blocks(&self, language: &str) -> Vec<String> {
        let opening = format!("```{language}");
        let mut blocks = Vec::new();
        let mut lines = self.text.lines();
        while lines.any(|line| line == opening) {
            let inside: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(inside.join("\n") + "\n");
        }
        blocks
    }

    /// The only block fenced as `language`, or the first that contains `text`.
    pub(crate) fn block(&self, language: &str, text: &str) -> Result<String> {
        let blocks = self.blocks(language);
        blocks.into_iter().find(|block| block.contains(text)).ok_or_else(|| {
            let name = self.name;
            LabError::new(format!("{name} has no block of {language} with {text:?}"))
        })
    }

    /// The flags with which it starts the daemon: those of its first `refract --…`.
    pub(crate) fn flags(&self) -> Result<Vec<String>> {
        let scripts = self.blocks("sh").concat();
        let command = scripts
            .lines()
            .find_map(|line| line.strip_prefix("sudo refract --"))
            .ok_or_else(|| LabError::new(format!("{} starts no daemon", self.name)))?;
        Ok(format!("--{command}").split_whitespace().map(str::to_owned).collect())
    }
}
