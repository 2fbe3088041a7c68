//! A participant, for every way to wait.

use std::time::Instant;

use super::connections::Connections;
use super::feed::Feed;
use super::target::Target;
use crate::calls;
use crate::drive::{Deadline, Drive};
use crate::error::Error;
use crate::exchange::{Exchange, Prepared};
use crate::options::{Options, ParticipantOptions};
use crate::protocol::{Answer, MANAGER, ParticipantCall, ParticipantPhase, Participate};

/// A name that luod still thinks taken, by the subscription before, and an update that goes on.
const NOT_YET: &[&str] = &["EEXIST", "EBUSY"];

#[derive(Debug)]
pub(crate) struct Participant<D: Drive> {
    feed: Feed<D>,
    answers: Connections<D>,
    options: Options,
}

impl<D: Drive> Participant<D> {
    pub(crate) async fn join(name: &str, how: ParticipantOptions) -> Result<Self, Error> {
        let parameters = Participate {
            name: name.to_owned(),
            required: Some(how.required),
            deadline_milliseconds: how.deadline.map(calls::milliseconds),
        };
        let call = Prepared::streaming(MANAGER, "Participate", &parameters)?;
        let method = call.method.clone();
        let options = how.options;
        let deadline = Deadline::after(options.deadline);
        let target = || Target::Socket(options.socket.clone());
        let mut feed = Feed::new(target(), call, options.deadline, NOT_YET);
        match feed.next::<ParticipantCall>(deadline.at()).await? {
            Some(call) if call.phase == ParticipantPhase::Subscribed => {
                Ok(Self { feed, answers: Connections::new(target()), options })
            }
            Some(_) => Err(Error::protocol(&method, "it begins with a call to be answered")),
            None => Err(deadline.exceeded(&method, None)),
        }
    }

    pub(crate) async fn next_call(
        &mut self,
        until: Option<Instant>,
    ) -> Result<Option<ParticipantCall>, Error> {
        self.feed.next(until).await
    }

    pub(crate) async fn answer(
        &self,
        call: &ParticipantCall,
        data: Option<u64>,
        veto: Option<&str>,
    ) -> Result<(), Error> {
        if call.phase == ParticipantPhase::Subscribed {
            return Ok(());
        }
        let veto = veto.map(str::to_owned);
        let parameters = Answer { participant: call.participant, call: call.call, data, veto };
        let call = Prepared::new(MANAGER, "Answer", &parameters, Vec::new())?;
        let mut exchange = Exchange::new(vec![call]);
        let deadline = Deadline::after(self.options.deadline);
        match self.answers.ask(&mut exchange, &deadline, calls::done).await {
            // luod has the first one and waits for none any more.
            Err(error) if exchange.is_repeated() && error.is("ENOENT") => Ok(()),
            other => other,
        }
    }
}
