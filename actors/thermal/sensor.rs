//! Where readings come from: a trait, and all of this machine's sources behind it, each on a thread
//! of its own, since any of them may hang.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::reading::Reading;

/// Something that knows how hot the machine is.
pub trait Sensor: Send {
    /// What it says now; nothing, if it knows nothing.
    fn read(&mut self) -> Reading;
}

/// A source on its own thread: it need not be sent anywhere, only its readings are.
pub trait Source {
    /// What it says now.
    fn read(&mut self) -> Reading;
}

/// Makes a source on its own thread; `None` where there is no such thing.
pub type MakeSource = fn() -> Option<Box<dyn Source>>;

/// All sources of a machine.
#[derive(Debug)]
pub struct Sources {
    threads: Vec<Thread>,
    limit: Duration,
}

#[derive(Debug)]
struct Thread {
    name: &'static str,
    make: MakeSource,
    ask: Sender<()>,
    hear: Receiver<Reading>,
    /// Whether it was asked and has not answered: it is not asked again before it has.
    asked: bool,
    /// Whether it ever told anything about heat.
    spoke: bool,
}

impl Sources {
    /// Every source there is on this system; none has to answer later than after `limit`.
    #[must_use]
    pub fn of_this_machine(limit: Duration) -> Self {
        Self::new(super::sources(), limit)
    }

    /// These sources.
    #[must_use]
    pub fn new(sources: Vec<(&'static str, MakeSource)>, limit: Duration) -> Self {
        let threads = sources.into_iter().filter_map(|(name, make)| start(name, make));
        Self { threads: threads.collect(), limit }
    }
}

fn start(name: &'static str, make: MakeSource) -> Option<Thread> {
    let ((ask, asked), (tell, hear)) = (channel(), channel());
    let work = move || {
        let mut source = make();
        // Ends when nobody asks any more. Who hangs is left behind; there is one for each source.
        while asked.recv().is_ok() {
            let reading = source.as_mut().map_or_else(Reading::default, |source| source.read());
            if tell.send(reading).is_err() {
                break;
            }
        }
    };
    let spawned = std::thread::Builder::new().name(format!("heat-{name}")).spawn(work);
    if let Err(error) = spawned {
        tracing::warn!(source = name, %error, "a source of temperatures has no thread");
        return None;
    }
    Some(Thread { name, make, ask, hear, asked: false, spoke: false })
}

impl Sensor for Sources {
    fn read(&mut self) -> Reading {
        for thread in self.threads.iter_mut().filter(|thread| !thread.asked) {
            // A thread that is gone is heard of below.
            thread.asked = thread.ask.send(()).is_ok();
        }
        let deadline = Instant::now() + self.limit;
        let mut all = Reading::default();
        for thread in &mut self.threads {
            let left = deadline.saturating_duration_since(Instant::now());
            let reading = match thread.hear.recv_timeout(left) {
                Ok(reading) => {
                    thread.asked = false;
                    reading
                }
                Err(RecvTimeoutError::Timeout) => Reading::default(),
                Err(RecvTimeoutError::Disconnected) => {
                    // It panicked: by the next look there is another.
                    if let Some(new) = start(thread.name, thread.make) {
                        *thread = Thread { spoke: thread.spoke, ..new };
                    }
                    Reading::default()
                }
            };
            match reading.is_of_heat() {
                true => thread.spoke = true,
                false if thread.spoke => all.silent.push(thread.name),
                false => {}
            }
            all.join(reading);
        }
        all
    }
}
