// Package egress keeps netd told what every sandbox of the node may reach.
//
// The agent's memory is the desired state: what lifecycle says is kept and passed on
// at once when netd is there, and all of it is compared with what netd knows whenever
// netd comes up, then every so often. Without netd no sandbox reaches anything, so
// that nothing has to wait for it: only a policy that somebody asked for is refused
// while there is nobody to enforce it. From one netd to the next it holds the sockets of
// connections, which nobody reads then. The package decides no policy and looks into
// none; lifecycle fills it again after a restart, and bandwidths are in a file.
package egress

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/netdapi"
	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/netns"
)

const (
	// callTimeout bounds one statement to a netd that answers: it takes a
	// millisecond, and up to ten for the largest policy.
	callTimeout = time.Second
	// redial is how soon a netd that comes up is noticed: its sandboxes wait.
	redial = 100 * time.Millisecond
	// retry is the pace of a comparison that failed, compare of those that did not.
	retry, compare = time.Second, time.Minute
	// patience is how many comparisons may fail before connections go on all the same:
	// one sandbox of which netd can't be told holds up no other's.
	patience = 3
)

// ErrUnavailable is what a policy is refused with that nobody would enforce.
var ErrUnavailable = errdefs.New(errdefs.Unavailable, "network policy is unavailable in this deployment")

// Config wires an Agent.
type Config struct {
	Socket string // of netd; empty: there is none
	// Believe has a sandbox believe who answers it where TLS is opened, and SSH. It is
	// called before netd is told of a policy that does that.
	Believe func(id sandbox.ID, who netdapi.CA, ssh []policy.Server) error
	Log     *slog.Logger
}

// Agent is safe for concurrent use.
type Agent struct {
	client  *netdapi.Client // nil: there is no netd
	believe func(id sandbox.ID, who netdapi.CA, ssh []policy.Server) error
	log     *slog.Logger
	up      atomic.Bool
	behind  chan struct{}        // holds a value when netd was not told something
	told    chan context.Context // holds one when a netd has been told everything; it ends with it

	setting sync.Mutex // held while bandwidths change, which one caller does at a time

	mu            sync.Mutex
	want          map[sandbox.ID]*desired
	bandwidths    Bandwidths
	bandwidthFile string // empty: they are not kept
	held          map[sandbox.ID][]netdapi.Held
	heldCount     int
}

// desired is what netd has to know of a sandbox. Its turn is held while netd is told,
// so that the last word said is the last one heard.
type desired struct {
	turn chan struct{}

	// Agent.mu guards what follows.
	slot   netdapi.Slot
	policy *netdapi.Policy // nil: a slot, which reaches nothing
	gone   bool

	unbelieving bool // it was not told whom to believe; the turn guards it
}

// New makes an agent.
func New(cfg Config) *Agent {
	a := &Agent{believe: cfg.Believe, log: cfg.Log, behind: make(chan struct{}, 1), told: make(chan context.Context, 1), want: map[sandbox.ID]*desired{}, held: map[sandbox.ID][]netdapi.Held{}}
	if cfg.Socket != "" {
		a.client = netdapi.NewClient(cfg.Socket)
	}
	return a
}

// Available reports whether there is somebody to enforce a policy.
func (a *Agent) Available() bool { return a.up.Load() }

// Attach says where a sandbox is in the network. It never fails: what netd can't be
// told now it is told later, and until then nothing passes.
func (a *Agent) Attach(ctx context.Context, s netns.Slot, gen sandbox.Generation) {
	slot := netdapi.Slot{ID: s.ID, Generation: gen, Ifindex: s.Ifindex(), IPv4: s.IP, IPv6: s.IP6, MAC: s.MAC().String()}
	a.mu.Lock()
	d := a.want[s.ID]
	if d == nil {
		d = &desired{turn: make(chan struct{}, 1)}
		a.want[s.ID] = d
	}
	if d.slot != slot {
		d.slot, d.policy = slot, nil
		a.cutHeld(s.ID)
	}
	a.mu.Unlock()
	if err := a.tell(ctx, d, netdapi.Known{}); err != nil {
		a.log.Debug("netd was not told of a sandbox", "sandbox", s.ID, "gen", gen, "error", err)
	}
}

// SetPolicy says what a sandbox that was attached may reach; nil is the default. When
// it has returned nil, every later packet is judged by it. After an error nothing
// passes that did not before, and netd will be told as soon as it can be.
func (a *Agent) SetPolicy(ctx context.Context, id sandbox.ID, team string, n *journal.Network) error {
	a.mu.Lock()
	d := a.want[id]
	if d == nil {
		a.mu.Unlock()
		return errdefs.New(errdefs.NotFound, "sandbox %s has no network", id)
	}
	p := &netdapi.Policy{ID: id, Generation: d.slot.Generation, Team: team}
	if n != nil {
		p.Policy, p.Credentials = n.Policy, n.Credentials
	}
	d.policy = p
	slot := d.slot
	a.mu.Unlock()
	return a.tellPolicy(ctx, d, slot)
}

// tellPolicy does not attach again what netd was told is in a slot: it says when it was not.
func (a *Agent) tellPolicy(ctx context.Context, d *desired, slot netdapi.Slot) error {
	err := a.tell(ctx, d, netdapi.Known{Slot: slot})
	if isNotFound(err) {
		err = a.tell(ctx, d, netdapi.Known{})
	}
	return err
}

func isNotFound(err error) bool {
	var typed *errdefs.Error
	return errors.As(err, &typed) && typed.Kind == errdefs.NotFound
}

// Detach forgets a sandbox, whose link is about to go.
func (a *Agent) Detach(ctx context.Context, id sandbox.ID) {
	a.mu.Lock()
	d := a.want[id]
	delete(a.want, id)
	a.cutHeld(id)
	if d != nil {
		d.gone = true
	}
	a.mu.Unlock()
	if d == nil {
		return // or nobody ever told of it: the next comparison finds it
	}
	if err := a.tell(ctx, d, netdapi.Known{}); err != nil {
		a.log.Debug("netd was not told of a sandbox's end", "sandbox", id, "error", err)
	}
}

// tell has netd know what is wanted of one sandbox, beyond what it knows already.
func (a *Agent) tell(ctx context.Context, d *desired, known netdapi.Known) error {
	if !a.up.Load() {
		return ErrUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	err := a.state(ctx, d, known)
	if errors.Is(err, netdapi.ErrDown) && !errors.Is(context.Cause(ctx), context.Canceled) {
		a.up.Store(false) // until it answers again; nobody waits for it meanwhile
	}
	if err != nil {
		select {
		case a.behind <- struct{}{}:
		default: // a comparison is due anyway
		}
	}
	return err
}

// state makes the calls. The caller has the turn.
func (a *Agent) state(ctx context.Context, d *desired, known netdapi.Known) error {
	a.mu.Lock()
	slot, gone := d.slot, d.gone
	var policy *netdapi.Policy
	if d.policy != nil {
		policy = new(a.limited(*d.policy))
	}
	a.mu.Unlock()
	if gone {
		return a.client.Detach(ctx, slot.ID, slot.Generation)
	}
	if known.Slot != slot {
		if err := a.client.Attach(ctx, slot); err != nil {
			return err
		}
	}
	if policy == nil || policy.Digest() == known.Digest && !d.unbelieving {
		return nil
	}
	// Who answers is believed before he does. That he is not keeps no policy from being
	// enforced: then connections fail, and none gets past it.
	err := a.introduce(ctx, *policy)
	d.unbelieving = err != nil
	return errors.Join(a.client.SetPolicy(ctx, *policy), err)
}

// introduce has a sandbox believe whoever its policy has answer it.
func (a *Agent) introduce(ctx context.Context, told netdapi.Policy) error {
	if len(told.Policy) == 0 {
		return nil // the default, which opens nothing
	}
	p, err := policy.Parse(told.Policy)
	if err != nil {
		return err
	}
	ssh := p.AnswersSSH()
	if !p.Intercepts() && len(ssh) == 0 {
		return nil
	}
	who, err := a.client.CA(ctx, told.ID)
	if err != nil {
		return err
	}
	return a.believe(told.ID, who, ssh)
}

// Run follows netd until ctx ends. What is wanted has to be there when it begins:
// what netd knows beyond that is taken back.
func (a *Agent) Run(ctx context.Context) error {
	if a.client == nil {
		<-ctx.Done()
		return nil
	}
	defer a.client.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { a.hold(ctx) })
	for ctx.Err() == nil {
		a.follow(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(redial):
		}
	}
	return nil
}

// follow lasts as long as one netd does.
func (a *Agent) follow(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	err := a.client.Watch(ctx, func(info netdapi.Info) {
		a.log.Info("netd answers", "version", info.Version)
		wg.Go(func() {
			a.keepTold(ctx)
			cancel() // also when it does not answer any more: the watch begins anew
		})
	})
	if a.up.Swap(false) {
		a.log.Warn("netd is gone: nothing new reaches the network until it is back", "error", err)
	}
}

// keepTold compares until ctx ends or netd hangs.
func (a *Agent) keepTold(ctx context.Context) {
	a.up.Store(true)
	for tries := 1; ; tries++ {
		pause := compare
		err := a.reconcile(ctx)
		if a.up.Load() && tries <= patience && (err == nil || tries == patience) { // whom it could not be told of has no policy, and no connection goes on
			tries = patience
			a.setTold(ctx)
		}
		if err != nil {
			if ctx.Err() == nil {
				a.log.Warn("telling netd failed and will be tried again", "error", err)
			}
			pause = retry
			select {
			case <-a.behind: // it is what has just failed
			default:
			}
		}
		if !a.up.Load() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		case <-a.behind:
			if !a.up.Load() {
				return
			}
		}
	}
}

// setTold says that a netd has been told. Who has said so of another has gone.
func (a *Agent) setTold(ctx context.Context) {
	select {
	case <-a.told:
	default:
	}
	a.told <- ctx
}

// reconcile brings netd in line. What it knows is listed first: what is wanted from
// then on it is told by whoever wants it.
func (a *Agent) reconcile(ctx context.Context) error {
	list, err := a.client.List(ctx)
	if err != nil {
		return err
	}
	known := make(map[sandbox.ID]netdapi.Known, len(list))
	for _, k := range list {
		known[k.ID] = k
	}
	a.mu.Lock()
	want := make(map[sandbox.ID]*desired, len(a.want))
	for id, d := range a.want {
		want[id] = d
	}
	a.mu.Unlock()
	var errs []error
	for id, d := range want {
		errs = append(errs, a.tell(ctx, d, known[id]))
		delete(known, id)
	}
	for id, k := range known {
		a.log.Info("netd knows a sandbox that nobody has", "sandbox", id)
		errs = append(errs, a.client.Detach(ctx, id, k.Generation))
	}
	return errors.Join(errs...)
}
