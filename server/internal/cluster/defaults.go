package cluster

import (
	"cmp"
	"time"
)

func (t Timings) withDefaults() Timings {
	return Timings{
		WriteWait:    cmp.Or(t.WriteWait, 5*time.Second),
		ReadWait:     cmp.Or(t.ReadWait, 5*time.Second),
		Hedge:        cmp.Or(t.Hedge, 100*time.Millisecond),
		Backoff:      cmp.Or(t.Backoff, 50*time.Millisecond),
		MaxBackoff:   cmp.Or(t.MaxBackoff, 2*time.Second),
		AckTimeout:   cmp.Or(t.AckTimeout, 10*time.Second),
		TailLinger:   cmp.Or(t.TailLinger, 50*time.Millisecond),
		PullWait:     cmp.Or(t.PullWait, 20*time.Second),
		CursorEvery:  cmp.Or(t.CursorEvery, 30*time.Second),
		MendWait:     cmp.Or(t.MendWait, time.Minute),
		VerifyEvery:  cmp.Or(t.VerifyEvery, 24*time.Hour),
		LossEvery:    cmp.Or(t.LossEvery, time.Second),
		StartWait:    cmp.Or(t.StartWait, 10*time.Second),
		ScrubEvery:   cmp.Or(t.ScrubEvery, 30*time.Minute),
		ScrubSettle:  cmp.Or(t.ScrubSettle, 30*time.Second),
		FutureMargin: cmp.Or(t.FutureMargin, 5*time.Minute),
	}
}

func (l Limits) withDefaults() Limits {
	return Limits{
		InFlightBytes:    cmp.Or(l.InFlightBytes, 8<<20),
		PeerQueueBytes:   cmp.Or(l.PeerQueueBytes, 32<<20),
		StreamBytes:      cmp.Or(l.StreamBytes, 16<<20),
		MessageBytes:     min(cmp.Or(l.MessageBytes, 1<<20), 2<<20),
		PullBytes:        min(cmp.Or(l.PullBytes, 1<<20), 2<<20),
		VerifyBytesRate:  cmp.Or(l.VerifyBytesRate, 4<<20),
		CatchUpBytesRate: l.CatchUpBytesRate,
		CachedKeys:       cmp.Or(l.CachedKeys, 4096),
		VerifyGroup:      cmp.Or(l.VerifyGroup, 64),
		ReadTries:        cmp.Or(l.ReadTries, 3),
		Voices:           cmp.Or(l.Voices, 10_000),
	}
}
