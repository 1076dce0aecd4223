package pods

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"s0.run/vk-provider/internal/podspec"
)

// mounted is what is mounted at one path.
type mounted struct {
	files map[string]file // by path below it; nil: an emptyDir
	same  string          // where the same emptyDir is mounted first; empty: here
}

// file is one of a volume's.
type file struct {
	content string
	mode    int64
}

// defaultMode is what Kubernetes' own API server gives volumes that name none.
const defaultMode = 0o644

// mounts are those of all containers, which share one root filesystem.
func (r *resolver) mounts() (map[string]mounted, error) {
	all, first := map[string]mounted{}, map[string]string{}
	for _, c := range slices.Concat(r.api.Spec.InitContainers, r.api.Spec.Containers) {
		for _, m := range c.VolumeMounts {
			dir := path.Clean("/" + m.MountPath)
			if _, done := all[dir]; done {
				continue
			}
			v, err := r.volumeNamed(m.Name)
			if err != nil {
				return nil, err
			}
			switch {
			case podspec.TokenVolume(v):
			case v.EmptyDir != nil:
				all[dir] = mounted{same: first[m.Name]}
				if first[m.Name] == "" {
					first[m.Name] = dir
				}
			default:
				files := map[string]file{}
				if err := r.volume(v.VolumeSource, adder(files)); err != nil {
					return nil, err
				}
				all[dir] = mounted{files: files}
			}
		}
	}
	return all, nil
}

func (r *resolver) volumeNamed(name string) (corev1.Volume, error) {
	for _, v := range r.api.Spec.Volumes {
		if v.Name == name {
			return v, nil
		}
	}
	return corev1.Volume{}, fmt.Errorf("there is no volume %q", name)
}

// add adds a file of a volume; without a mode it has the volume's.
type add func(name, content string, mode *int32)

func adder(files map[string]file) func(volumeMode *int32) add {
	return func(volumeMode *int32) add {
		return func(name, content string, mode *int32) {
			if mode == nil {
				mode = volumeMode
			}
			f := file{content, defaultMode}
			if mode != nil {
				f.mode = int64(*mode)
			}
			files[strings.TrimPrefix(path.Clean("/"+name), "/")] = f
		}
	}
}

func (r *resolver) volume(v corev1.VolumeSource, of func(mode *int32) add) error {
	switch {
	case v.ConfigMap != nil:
		return r.configMapFiles(v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional, of(v.ConfigMap.DefaultMode))
	case v.Secret != nil:
		return r.secretFiles(v.Secret.SecretName, v.Secret.Items, v.Secret.Optional, of(v.Secret.DefaultMode))
	case v.DownwardAPI != nil:
		return r.downwardFiles(v.DownwardAPI.Items, of(v.DownwardAPI.DefaultMode))
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if err := r.projection(s, of(v.Projected.DefaultMode)); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.New("its content comes from where nobody knows")
}

func (r *resolver) projection(s corev1.VolumeProjection, add add) error {
	switch {
	case s.ConfigMap != nil:
		return r.configMapFiles(s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional, add)
	case s.Secret != nil:
		return r.secretFiles(s.Secret.Name, s.Secret.Items, s.Secret.Optional, add)
	case s.DownwardAPI != nil:
		return r.downwardFiles(s.DownwardAPI.Items, add)
	}
	return nil
}

func (r *resolver) configMapFiles(name string, items []corev1.KeyToPath, optional *bool, add add) error {
	cm, err := r.configMap(name, optional)
	if cm == nil || err != nil {
		return err
	}
	data := maps.Clone(cm.Data)
	if data == nil {
		data = map[string]string{}
	}
	for k, b := range cm.BinaryData {
		data[k] = string(b)
	}
	return r.keys("ConfigMap", name, data, items, optional, add)
}

func (r *resolver) secretFiles(name string, items []corev1.KeyToPath, optional *bool, add add) error {
	s, err := r.secret(name, optional)
	if s == nil || err != nil {
		return err
	}
	data := map[string]string{}
	for k, b := range s.Data {
		data[k] = string(b)
	}
	return r.keys("Secret", name, data, items, optional, add)
}

func (r *resolver) keys(kind, name string, data map[string]string, items []corev1.KeyToPath, optional *bool, add add) error {
	if len(items) == 0 {
		for k, v := range data {
			add(k, v, nil)
		}
		return nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if err := r.missingKey(ok, kind, name, item.Key, optional); err != nil {
			return err
		}
		if ok {
			add(item.Path, v, item.Mode)
		}
	}
	return nil
}

func (r *resolver) downwardFiles(items []corev1.DownwardAPIVolumeFile, add add) error {
	for _, item := range items {
		v, err := r.downwardItem(item)
		if err != nil {
			return fmt.Errorf("file %s: %w", item.Path, err)
		}
		add(item.Path, v, item.Mode)
	}
	return nil
}

func (r *resolver) downwardItem(item corev1.DownwardAPIVolumeFile) (string, error) {
	if item.FieldRef != nil {
		return r.downwardField(item.FieldRef.FieldPath)
	}
	ref := item.ResourceFieldRef
	for _, c := range slices.Concat(r.api.Spec.InitContainers, r.api.Spec.Containers) {
		if ref != nil && c.Name == ref.ContainerName {
			return resourceOf(&c, ref)
		}
	}
	return "", errors.New("its content comes from where nobody knows")
}

func (r *resolver) downwardField(name string) (string, error) {
	switch name {
	case "metadata.labels":
		return lines(r.api.Labels), nil
	case "metadata.annotations":
		return lines(r.api.Annotations), nil
	}
	return r.field(name)
}
