// Package session turns flags, environment and the configuration file into a
// client that is ready to call: which server, as whom, in which team.
//
// A flag goes before the environment, that before the profile, that before the
// default. The package renews access tokens and never sends a profile's token to
// another server than the one that gave it. The configuration file is everybody's:
// whatever is changed in it is read again, changed and saved under its lock, for a
// refresh token that two s0 use ends the session of both.
package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/config"
)

// DefaultURL is where `make up` serves.
const DefaultURL = "http://127.0.0.1:30080"

// The environment variables, the same in all SDKs.
const (
	EnvToken = "SANDBOX0_TOKEN"
	EnvURL   = "SANDBOX0_BASE_URL"
)

const (
	// metadataTimeout keeps a server that does not know /metadata from holding
	// up what the user asked for.
	metadataTimeout = 5 * time.Second
	// renewBefore is how long before its end an access token is renewed, so that
	// it does not end on its way.
	renewBefore = 30 * time.Second
	// callTimeout bounds a call that is made while other s0 wait for the file.
	callTimeout = 10 * time.Second
)

// ErrSignedOut is returned when there is no token for the server.
var ErrSignedOut = errors.New("you are not signed in")

// Options are what the command line says; empty fields say nothing.
type Options struct {
	APIURL     string
	Token      string
	Profile    string
	ConfigPath string // defaults to config.DefaultPath
	Getenv     func(string) string
	UserAgent  string
}

// Session is the resolved configuration of one command.
type Session struct {
	opts       Options
	path       string
	name       string // of the profile
	file       *config.File
	profile    *config.Profile
	url        string
	overridden bool // the URL is another than the profile's
}

// Open reads the configuration; nothing is sent yet.
func Open(opts Options) (*Session, error) {
	path := opts.ConfigPath
	if path == "" {
		var err error
		if path, err = config.DefaultPath(); err != nil {
			return nil, err
		}
	}
	s := &Session{opts: opts, path: path}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.url, s.overridden = s.resolveURL()
	return s, nil
}

// load reads the file as it is now.
func (s *Session) load() error {
	file, err := config.Load(s.path)
	if err != nil {
		return err
	}
	if len(file.Profiles) == 0 && s.opts.Profile != "" {
		file.CurrentProfile = s.opts.Profile // the first profile is the current one
	}
	if s.name == "" { // and it stays so, whatever becomes the current one meanwhile
		s.name = first(s.opts.Profile, file.ProfileName())
	}
	s.file, s.profile = file, file.Profile(s.name)
	return nil
}

// change lets f change the profile as it is in the file now, and saves what f has
// made of it. Other s0 that change something wait for it.
func (s *Session) change(ctx context.Context, f func(p *config.Profile) error) error {
	unlock, err := config.Lock(ctx, s.path)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.load(); err != nil {
		return err
	}
	if err := f(s.profile); err != nil {
		return err
	}
	return s.file.Save(s.path)
}

func (s *Session) resolveURL() (url string, overridden bool) {
	own := first(s.profile.APIURL, DefaultURL)
	chosen := first(s.opts.APIURL, s.opts.Getenv(EnvURL), own)
	return trim(chosen), trim(chosen) != trim(own)
}

// URL is the server's.
func (s *Session) URL() string { return s.url }

// Format is how the user likes results printed; empty if they never said.
func (s *Session) Format() string { return s.file.Output.Format }

// ProfileName is the name of the profile in use.
func (s *Session) ProfileName() string { return s.name }

// TeamID is the team that the user chose; empty if they never did.
func (s *Session) TeamID() string {
	if s.overridden {
		return ""
	}
	return s.profile.CurrentTeamID
}

// Anonymous is a client without a token.
func (s *Session) Anonymous() (*client.Client, error) { return s.newClient("", "") }

// Client is a client that acts for the user. It renews an access token that is
// about to end.
func (s *Session) Client(ctx context.Context) (*client.Client, error) {
	token, err := s.token(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.checkGateway(ctx); err != nil {
		return nil, err
	}
	team := ""
	if !IsAPIKey(token) { // a key belongs to one team
		team = s.TeamID()
	}
	return s.newClient(token, team)
}

// UserClient is Client for what an API key can't do.
func (s *Session) UserClient(ctx context.Context) (*client.Client, error) {
	if token := first(s.opts.Token, s.opts.Getenv(EnvToken)); IsAPIKey(token) {
		return nil, fmt.Errorf("this needs a signed-in user, and an API key was given: unset %s (or drop --token) and use `s0 auth login`", EnvToken)
	}
	return s.Client(ctx)
}

// IsAPIKey tells API keys from access tokens.
func IsAPIKey(token string) bool { return strings.HasPrefix(token, "s0_") }

func (s *Session) newClient(token, team string) (*client.Client, error) {
	return client.New(client.Config{
		BaseURL: s.url, Token: token, TeamID: team,
		HTTPClient: &http.Client{}, UserAgent: s.opts.UserAgent,
	})
}

// token finds the token to use.
func (s *Session) token(ctx context.Context) (string, error) {
	if t := first(s.opts.Token, s.opts.Getenv(EnvToken)); t != "" {
		return t, nil
	}
	switch {
	case s.profile.Token == "":
		return "", ErrSignedOut
	case s.overridden && s.profile.APIURL != "":
		return "", fmt.Errorf("%w: the profile %q is for %s, not %s", ErrSignedOut, s.ProfileName(), s.profile.APIURL, s.url)
	}
	if err := s.renew(ctx); err != nil {
		return "", err
	}
	return s.profile.ExpandedToken(s.opts.Getenv)
}

// renew exchanges an access token that is about to end for a new one, unless
// another s0 has done so by the time that it is our turn.
func (s *Session) renew(ctx context.Context) error {
	if !ending(s.profile) {
		return nil
	}
	server := s.profile.APIURL
	return s.change(ctx, func(p *config.Profile) error {
		switch {
		case p.Token == "" || p.APIURL != server:
			return fmt.Errorf("%w: another s0 has signed out or in elsewhere meanwhile", ErrSignedOut)
		case !ending(p):
			return nil
		}
		login, err := s.exchange(ctx, s.url, p.RefreshToken)
		if unauthorized(err) {
			return fmt.Errorf("%w: your session has ended", ErrSignedOut)
		}
		if err != nil {
			return fmt.Errorf("renewing your session: %w", err)
		}
		remember(p, login)
		return nil
	})
}

func ending(p *config.Profile) bool {
	return p.RefreshToken != "" && p.ExpiresAt != 0 && time.Until(time.Unix(p.ExpiresAt, 0)) <= renewBefore
}

// exchange uses a refresh token up.
func (s *Session) exchange(ctx context.Context, server, refresh string) (*client.Login, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := client.New(client.Config{BaseURL: server, UserAgent: s.opts.UserAgent})
	if err != nil {
		return nil, err
	}
	return c.RefreshToken(ctx, refresh)
}

func unauthorized(err error) bool {
	var refused *client.APIError
	return errors.As(err, &refused) && refused.StatusCode == http.StatusUnauthorized
}

// checkGateway learns how the server wants to be talked to, unless the profile
// knows. A server that does not say is talked to directly.
func (s *Session) checkGateway(ctx context.Context) error {
	mode := s.profile.GatewayMode
	if s.overridden || mode == "" {
		anonymous, err := s.Anonymous()
		if err != nil {
			return err
		}
		if mode, err = gatewayMode(ctx, anonymous); err != nil {
			return err
		}
	}
	if mode == string(client.MetadataGatewayModeGlobal) {
		return fmt.Errorf("%s is the API of several regions, which this s0 can't use: set --api-url to a region's own API", s.url)
	}
	return nil
}

func gatewayMode(ctx context.Context, c *client.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	metadata, err := c.Metadata(ctx)
	var refused *client.APIError
	switch {
	case err == nil:
		return string(metadata.GatewayMode), nil
	case errors.As(err, &refused):
		return string(client.MetadataGatewayModeDirect), nil
	}
	return "", err
}

// SignIn remembers the tokens of a login and makes its team the current one.
func (s *Session) SignIn(ctx context.Context, login *client.Login) error {
	signedIn, err := s.newClient(login.AccessToken, "")
	if err != nil {
		return err
	}
	mode, err := gatewayMode(ctx, signedIn)
	if err != nil {
		return err
	}
	teams, err := signedIn.ListTeams(ctx)
	if err != nil {
		return fmt.Errorf("listing your teams: %w", err)
	}
	team := chooseTeam(login.User, teams.Teams, s.TeamID())
	return s.change(ctx, func(p *config.Profile) error {
		p.APIURL, p.GatewayMode, p.CurrentTeamID = s.url, mode, team
		remember(p, login)
		return nil
	})
}

// chooseTeam keeps the team of before if the user still has it, else takes the
// user's default, else the first.
func chooseTeam(user client.User, teams []client.Team, before string) string {
	if len(teams) == 0 {
		return ""
	}
	chosen := teams[0].ID
	for _, t := range teams {
		if t.ID == before {
			return before
		}
		if user.DefaultTeamID != nil && t.ID == *user.DefaultTeamID {
			chosen = t.ID
		}
	}
	return chosen
}

// SignOut revokes the profile's tokens and forgets them. They are forgotten
// also when the server can't be told.
func (s *Session) SignOut(ctx context.Context) error {
	var told error
	err := s.change(ctx, func(p *config.Profile) error {
		if p.Token == "" {
			return ErrSignedOut
		}
		if !IsAPIKey(p.Token) && p.RefreshToken != "" {
			told = s.revoke(ctx, p)
		}
		p.Token, p.RefreshToken, p.ExpiresAt, p.CurrentTeamID = "", "", 0, ""
		return nil
	})
	if err != nil {
		return err
	}
	return told
}

// revoke ends a session at its server. An access token that has ended already is
// renewed for it.
func (s *Session) revoke(ctx context.Context, p *config.Profile) error {
	server := first(p.APIURL, DefaultURL)
	err := s.logout(ctx, server, p.Token, p.RefreshToken)
	if unauthorized(err) {
		var login *client.Login
		if login, err = s.exchange(ctx, server, p.RefreshToken); err == nil {
			err = s.logout(ctx, server, login.AccessToken, login.RefreshToken)
		}
		if unauthorized(err) {
			return nil // there is no session any more
		}
	}
	if err != nil {
		return fmt.Errorf("signed out here, but %s could not be told: %w", server, err)
	}
	return nil
}

func (s *Session) logout(ctx context.Context, server, access, refresh string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := client.New(client.Config{BaseURL: server, Token: access, UserAgent: s.opts.UserAgent})
	if err != nil {
		return err
	}
	return c.Logout(ctx, refresh)
}

// UseTeam makes a team the current one.
func (s *Session) UseTeam(ctx context.Context, id string) error {
	if s.overridden {
		return fmt.Errorf("the profile %q is for %s, not %s: sign in there first, or choose another with --profile", s.ProfileName(), first(s.profile.APIURL, DefaultURL), s.url)
	}
	return s.change(ctx, func(p *config.Profile) error {
		p.CurrentTeamID = id
		return nil
	})
}

func remember(p *config.Profile, login *client.Login) {
	p.Token, p.RefreshToken, p.ExpiresAt = login.AccessToken, login.RefreshToken, login.ExpiresAt
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func trim(url string) string { return strings.TrimRight(url, "/") }
