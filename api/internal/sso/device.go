package sso

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/oauth2"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

const (
	deviceGrant    = "urn:ietf:params:oauth:grant-type:device_code"
	usualInterval  = 5 * time.Second // RFC 8628, section 3.2
	longestPause   = time.Minute
	slowerBy       = 5 * time.Second // RFC 8628, section 3.5
	maxDeviceBytes = 2048            // of a code or URL
)

// DeviceLogin is a sign-in that somebody confirms in a browser elsewhere.
type DeviceLogin struct {
	ID          string // a secret
	UserCode    string
	URL         string // where to type the code
	CompleteURL string // with the code in it; may be empty
	Expires     time.Time
	Interval    time.Duration // between two polls
}

// deviceAnswer is RFC 8628's device authorization response.
type deviceAnswer struct {
	DeviceCode  string `json:"device_code"`
	UserCode    string `json:"user_code"`
	URL         string `json:"verification_uri"`
	CompleteURL string `json:"verification_uri_complete"`
	ExpiresIn   int64  `json:"expires_in"`
	Interval    int64  `json:"interval"`
}

func (a deviceAnswer) check() error {
	for _, s := range []string{a.DeviceCode, a.UserCode, a.URL} {
		if s == "" || len(s) > maxDeviceBytes || !printable(s) {
			return errors.New("the device authorization lacks a code or a URL")
		}
	}
	for _, raw := range []string{a.URL, a.CompleteURL} {
		u, err := url.Parse(raw)
		if raw != "" && (err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || len(raw) > maxDeviceBytes || !printable(raw)) {
			return fmt.Errorf("the device authorization has the URL %.200q", raw)
		}
	}
	if a.ExpiresIn <= 0 {
		return errors.New("the device authorization has ended already")
	}
	return nil
}

func (a deviceAnswer) interval() time.Duration {
	if a.Interval <= 0 {
		return usualInterval
	}
	return time.Duration(min(a.Interval, int64(longestPause/time.Second))) * time.Second
}

// StartDevice begins a sign-in on a device.
func (s *Service) StartDevice(ctx context.Context, id string) (DeviceLogin, error) {
	p, m, err := s.device(ctx, id)
	if err != nil {
		return DeviceLogin{}, err
	}
	var a deviceAnswer
	form := url.Values{"scope": {strings.Join(p.Scopes, " ")}}
	if err := p.post(ctx, m, m.client.Endpoint.DeviceAuthURL, form, &a); err != nil {
		return DeviceLogin{}, err
	}
	if err := a.check(); err != nil {
		return DeviceLogin{}, p.untrue(err)
	}
	login := DeviceLogin{ID: newSecret(), UserCode: a.UserCode, URL: a.URL, CompleteURL: a.CompleteURL, Interval: a.interval()}
	life := time.Duration(min(a.ExpiresIn, int64(maxDeviceLife/time.Second))) * time.Second
	login.Expires, err = s.store.BeginDeviceLogin(ctx, store.DeviceLogin{
		IDHash: hash(login.ID), Provider: id, SealedCode: seal(login.ID, a.DeviceCode), Interval: login.Interval,
	}, life)
	return login, err
}

// device finds a provider through which devices sign in.
func (s *Service) device(ctx context.Context, id string) (*provider, *metadata, error) {
	p, err := s.provider(id)
	if err != nil {
		return nil, nil, err
	}
	if !p.Device {
		return nil, nil, errdefs.New(errdefs.NotFound, "the provider %s does not sign devices in", id)
	}
	m, err := p.discover(ctx)
	if err == nil && m.client.Endpoint.DeviceAuthURL == "" {
		err = p.untrue(errors.New("it names no device authorization endpoint"))
	}
	return p, m, err
}

// The contract's words for how far a sign-in is.
const (
	Pending   = "pending"
	SlowDown  = "slow_down" // it was asked too soon, and the interval may have grown
	Completed = "completed"
)

// DeviceState says how far a sign-in is.
type DeviceState struct {
	Status   string
	Interval time.Duration
	Expires  time.Time
	User     uuid.UUID // who signed in, when it is Completed
}

func state(status string, row store.DeviceLogin) DeviceState {
	return DeviceState{Status: status, Interval: row.Interval, Expires: row.Expires}
}

var errDeviceEnded = errdefs.New(errdefs.NotFound, "there is no such device login: it may have ended")

// PollDevice looks whether a sign-in was confirmed, and ends it if so. A poll that
// comes too soon does not reach the provider, whichever replica it comes to.
func (s *Service) PollDevice(ctx context.Context, id, deviceLogin string) (DeviceState, error) {
	p, m, err := s.device(ctx, id)
	if err != nil {
		return DeviceState{}, err
	}
	if !validSecret(deviceLogin) {
		return DeviceState{}, errDeviceEnded
	}
	row, turn, err := s.store.PollDeviceLogin(ctx, store.DeviceLogin{IDHash: hash(deviceLogin), Provider: id})
	switch {
	case errdefs.Is(err, errdefs.NotFound):
		return DeviceState{}, errDeviceEnded
	case err != nil:
		return DeviceState{}, err
	case !turn:
		return state(SlowDown, row), nil
	}
	code, err := unseal(deviceLogin, row.SealedCode)
	if err != nil {
		return DeviceState{}, err
	}
	token, err := p.redeemDevice(ctx, m, code)
	if err != nil {
		return s.waiting(ctx, row, err)
	}
	done := state(Completed, row)
	done.User, err = s.confirmed(ctx, p, m, row, token)
	return done, err
}

// Answers of a token endpoint that are no end.
var (
	errPending  = errors.New("authorization pending")
	errSlowDown = errors.New("slow down")
)

// waiting is what becomes of a sign-in that has no tokens yet, or never will.
func (s *Service) waiting(ctx context.Context, row store.DeviceLogin, err error) (DeviceState, error) {
	switch {
	case errors.Is(err, errPending):
		return state(Pending, row), nil
	case errors.Is(err, errSlowDown):
		row, err = s.store.SlowDeviceLogin(ctx, row, slowerBy)
		return state(SlowDown, row), err
	case errdefs.Is(err, errdefs.Unavailable):
		return DeviceState{}, err // it may come back while the code holds
	}
	if ended := s.store.EndDeviceLogin(ctx, row); ended != nil && !errdefs.Is(ended, errdefs.NotFound) {
		s.log.Warn("could not end a device login", "provider", row.Provider, "err", ended)
	}
	return DeviceState{}, err
}

// confirmed ends a sign-in. The provider gives tokens once, so that a replica
// that asks at the same time gets none.
func (s *Service) confirmed(ctx context.Context, p *provider, m *metadata, row store.DeviceLogin, token *oauth2.Token) (uuid.UUID, error) {
	if err := s.store.EndDeviceLogin(ctx, row); err != nil {
		return uuid.Nil, err
	}
	account, err := p.account(ctx, m, token, "")
	if err != nil {
		return uuid.Nil, err
	}
	user, err := s.store.Identify(ctx, account, p.provision())
	if err == nil {
		s.noteSignIn(p, user, "device")
	}
	return user, err
}

func (p *provider) redeemDevice(ctx context.Context, m *metadata, code string) (*oauth2.Token, error) {
	var answer struct {
		AccessToken string `json:"access_token"`
		IDToken     string `json:"id_token"`
	}
	form := url.Values{"grant_type": {deviceGrant}, "device_code": {code}}
	if err := p.post(ctx, m, m.client.Endpoint.TokenURL, form, &answer); err != nil {
		return nil, err
	}
	token := &oauth2.Token{AccessToken: answer.AccessToken}
	return token.WithExtra(map[string]any{"id_token": answer.IDToken}), nil
}

// post sends a form in our name and decodes the answer.
func (p *provider) post(ctx context.Context, m *metadata, to string, form url.Values, into any) error {
	form.Set("client_id", p.ClientID)
	if m.client.Endpoint.AuthStyle == oauth2.AuthStyleInParams && p.secret != "" {
		form.Set("client_secret", string(p.secret))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if m.client.Endpoint.AuthStyle == oauth2.AuthStyleInHeader {
		req.SetBasicAuth(url.QueryEscape(p.ClientID), url.QueryEscape(string(p.secret)))
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return p.unavailable(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return p.unavailable(err)
	}
	if resp.StatusCode != http.StatusOK {
		return p.deviceRefusal(resp.StatusCode, b)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return p.untrue(err)
	}
	return nil
}

func (p *provider) deviceRefusal(status int, body []byte) error {
	var e struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(body, &e) // what has no code of its own is told by its status
	switch e.Error {
	case "authorization_pending":
		return errPending
	case "slow_down":
		return errSlowDown
	case "expired_token":
		return errDeviceEnded
	}
	return p.refused(status, e.Error, e.Description)
}
