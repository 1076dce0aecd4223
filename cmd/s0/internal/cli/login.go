package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
	"s0.run/cmd/s0/internal/tty"
)

// The ways to sign in.
const (
	modeAuto    = "auto"
	modeBuiltin = "builtin"
	modeDevice  = "device"
)

// loginOptions is what the flags of a sign-in say.
type loginOptions struct {
	mode, provider, email, password string
}

func (o loginOptions) hasPassword() bool { return o.email != "" || o.password != "" }

func (a *app) authLogin() *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Sign in and remember the tokens in the profile",
		Long: `Sign in and remember the tokens in the profile.

With --mode device you confirm in a browser, on this machine or any other, where
an identity provider that the server trusts signs you in. With --mode builtin
you give an email address and a password; what is not given is asked for, and
where stdin is no terminal they are read from it, a line each. By default s0
takes device where the server has it and you are there to confirm.`,
		Example: `  s0 auth login
  s0 auth login --mode device --provider corp
  s0 auth login --email admin@example.com
  s0 auth login --email admin@example.com < password-file
  s0 --api-url https://s0.example.com --profile work auth login`,
		Args: want(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.login(cmd.Context(), o) },
	}
	cmd.Flags().StringVar(&o.mode, "mode", modeAuto, "how to sign in: auto, device (in a browser) or builtin (email and password)")
	cmd.Flags().StringVar(&o.provider, "provider", "", "identity provider, where the server has several")
	cmd.Flags().StringVar(&o.email, "email", "", "email address")
	cmd.Flags().StringVar(&o.password, "password", "", "password; others on this machine can see it while the command runs")
	complete(cmd, "mode", modeAuto, modeDevice, modeBuiltin)
	return cmd
}

func (a *app) login(ctx context.Context, o loginOptions) error {
	c, err := a.session.Anonymous()
	if err != nil {
		return err
	}
	provider, err := chooseProvider(ctx, c, o)
	if err != nil {
		return err
	}
	var login *client.Login
	if provider == "" {
		login, err = loginBuiltin(ctx, c, o)
	} else {
		login, err = loginDevice(ctx, c, provider)
	}
	if err != nil {
		return err
	}
	if err := a.session.SignIn(ctx, login); err != nil {
		return err
	}
	return a.printer.Print(login.User, output.Text(fmt.Sprintf("Signed in to %s as %s (profile %s).", a.session.URL(), login.User.Email, a.session.ProfileName())))
}

// chooseProvider finds the provider through which to sign in on this device; ""
// is the server's own passwords.
func chooseProvider(ctx context.Context, c *client.Client, o loginOptions) (string, error) {
	switch {
	case o.mode != modeAuto && o.mode != modeDevice && o.mode != modeBuiltin:
		return "", fmt.Errorf("sign-in mode %q: want auto, device or builtin", o.mode)
	case o.hasPassword() && (o.mode == modeDevice || o.provider != ""):
		return "", errors.New("--email and --password are for --mode builtin: a provider asks for its own")
	case o.mode == modeBuiltin && o.provider != "":
		return "", errors.New("--provider is for --mode device")
	case o.mode == modeBuiltin || o.hasPassword():
		return "", nil
	}
	list, err := c.AuthProviders(ctx)
	if err != nil {
		return "", err
	}
	devices := deviceProviders(list.Providers)
	if o.mode == modeAuto && o.provider == "" {
		return automatic(list.Providers, devices)
	}
	return oneProvider(devices, o.provider)
}

func deviceProviders(list []client.AuthProvider) (ids []string) {
	for _, p := range list {
		if p.DeviceLoginEnabled {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// automatic asks nobody who is not there: a script has put a password on stdin.
func automatic(all []client.AuthProvider, devices []string) (string, error) {
	builtin := slices.ContainsFunc(all, func(p client.AuthProvider) bool { return p.Type == client.AuthProviderTypeBuiltin })
	switch {
	case builtin && (len(devices) == 0 || !tty.Is(os.Stdin)):
		return "", nil
	case len(devices) == 0:
		return "", errors.New("this server takes no passwords, and signs no devices in: use an API key")
	}
	return oneProvider(devices, "")
}

func oneProvider(ids []string, wanted string) (string, error) {
	switch {
	case len(ids) == 0:
		return "", errors.New("this server signs no devices in: see `s0 auth login --mode builtin`")
	case wanted == "" && len(ids) > 1:
		return "", fmt.Errorf("there are several providers: choose one with --provider %s, or --mode builtin", strings.Join(ids, "|"))
	case wanted == "" || slices.Contains(ids, wanted):
		return cmp.Or(wanted, ids[0]), nil
	}
	return "", fmt.Errorf("no provider %q signs devices in: there is %s", wanted, strings.Join(ids, ", "))
}

func loginBuiltin(ctx context.Context, c *client.Client, o loginOptions) (*client.Login, error) {
	var err error
	if o.email == "" {
		if o.email, err = tty.Ask("Email: "); err != nil {
			return nil, fmt.Errorf("reading the email address: %w", err)
		}
	}
	if o.password == "" {
		if o.password, err = tty.AskSecret("Password: "); err != nil {
			return nil, fmt.Errorf("reading the password: %w", err)
		}
	}
	login, err := c.Login(ctx, o.email, o.password)
	if err != nil {
		return nil, &signInError{err}
	}
	return login, nil
}

// loginDevice shows what is to be confirmed and waits for it.
func loginDevice(ctx context.Context, c *client.Client, provider string) (*client.Login, error) {
	d, err := c.StartDeviceLogin(ctx, provider)
	if err != nil {
		return nil, &signInError{err}
	}
	note("To sign in, open this page in a browser on any device, and type the code %s:", d.UserCode)
	note("    %s", d.VerificationURI)
	if d.VerificationURIComplete != nil {
		note("Or open this page, and see that it shows that code:")
		note("    %s", *d.VerificationURIComplete)
	}
	note("Waiting until you have confirmed. Ctrl-C gives up.")
	return awaitDevice(ctx, c, provider, d)
}

const (
	leastPause = time.Second // between two polls, whatever a server says
	mostPause  = 2 * time.Minute
)

// awaitDevice asks as often as the server wants to be asked.
func awaitDevice(ctx context.Context, c *client.Client, provider string, d *client.DeviceLogin) (*client.Login, error) {
	pause := seconds32(d.IntervalSeconds)
	for {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		state, err := c.PollDeviceLogin(ctx, provider, d.DeviceLoginID)
		var refused *client.APIError
		switch {
		case errors.As(err, &refused) && refused.RetryAfter > 0: // the provider, or the server, is away for a moment
			pause = max(pause, min(refused.RetryAfter, mostPause))
			continue
		case errors.As(err, &refused) && refused.StatusCode == 404:
			return nil, errors.New("nobody has confirmed in time: run the command again")
		case err != nil:
			return nil, &signInError{err}
		case state.Status == client.DeviceLoginStateStatusCompleted && state.Login != nil:
			return state.Login, nil
		}
		if state.IntervalSeconds != nil {
			pause = seconds32(*state.IntervalSeconds)
		}
	}
}

func seconds32(n int32) time.Duration {
	return min(max(time.Duration(n)*time.Second, leastPause), mostPause)
}
