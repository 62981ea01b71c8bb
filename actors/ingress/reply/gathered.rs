//! A reply put together from its deltas.

use super::Delta;

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// What was thought.
    Reasoning(String),
    /// An answer.
    Text(String),
    /// A call of a tool.
    Call {
        /// The tool.
        name: String,
        /// A JSON object, if it is complete.
        arguments: String,
        /// Whether it is.
        complete: bool,
    },
}

/// What was said so far, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply(pub(crate) Vec<Block>);

impl Reply {
    /// Adds a delta. True if it began a new block.
    pub(crate) fn take(&mut self, delta: &Delta) -> bool {
        match (self.0.last_mut(), delta) {
            (Some(Block::Reasoning(text)), Delta::Reasoning(more))
            | (Some(Block::Text(text)), Delta::Text(more)) => text.push_str(more),
            (Some(Block::Call { arguments, .. }), Delta::Arguments(more)) => {
                arguments.push_str(more);
            }
            (Some(Block::Call { complete, .. }), Delta::Called) => *complete = true,
            (_, Delta::Reasoning(text)) => {
                self.0.push(Block::Reasoning(text.clone()));
                return true;
            }
            (_, Delta::Text(text)) => {
                self.0.push(Block::Text(text.clone()));
                return true;
            }
            (_, Delta::Call(name)) => {
                let (name, arguments) = (name.clone(), String::new());
                self.0.push(Block::Call { name, arguments, complete: false });
                return true;
            }
            // Arguments follow their call.
            (_, Delta::Arguments(_) | Delta::Called) => {}
        }
        false
    }

    /// All of the answer's text.
    pub(crate) fn text(&self) -> String {
        let texts = self.0.iter().filter_map(|block| match block {
            Block::Text(text) => Some(text.as_str()),
            Block::Reasoning(_) | Block::Call { .. } => None,
        });
        texts.collect()
    }

    /// All that was thought, if anything was.
    pub(crate) fn reasoning(&self) -> Option<String> {
        let texts = self.0.iter().filter_map(|block| match block {
            Block::Reasoning(text) => Some(text.as_str()),
            Block::Text(_) | Block::Call { .. } => None,
        });
        let text: String = texts.collect();
        (!text.is_empty()).then_some(text)
    }

    /// All calls, by name and arguments.
    pub(crate) fn calls(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|block| match block {
            Block::Call { name, arguments, .. } => Some((name.as_str(), arguments.as_str())),
            Block::Reasoning(_) | Block::Text(_) => None,
        })
    }
}
