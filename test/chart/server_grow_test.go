package chart

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// growSteps are the commands of the README's section about growing a volume.
func growSteps(t *testing.T) string {
	t.Helper()
	return readmeBlock(t, "\n### Growing a volume\n", "sh", 1)
}

// The commands are complete, and match a release with values/production.yaml.
func TestReadmeGrowsWhatIsThere(t *testing.T) {
	steps := growSteps(t)
	out, err := exec.CommandContext(t.Context(), "sh", "-n", "-c", steps).CombinedOutput()
	require.NoError(t, err, "%s", out)
	set := statefulSet(t, render(t, options{release: "stemedb", namespace: "stemedb", env: "production"}))
	for i := range *set.Spec.Replicas {
		require.Contains(t, steps, fmt.Sprint(" ", i), "a member is left out")
	}
	require.Contains(t, steps, "delete statefulset "+set.Name+" --cascade=orphan")
	var claims []string
	for _, claim := range set.Spec.VolumeClaimTemplates {
		claims = append(claims, claim.Name+"-"+set.Name)
	}
	require.Contains(t, claims, "db-stemedb")
	require.Contains(t, steps, "pvc db-stemedb-$i")
}

// The README's commands, verbatim except for the namespace, on a server with
// its controllers: each is accepted, and the pods outlive it. The pods are
// never scheduled and the volumes are only names, so the test does not cover
// the growth of a disk, which is up to the storage.
func TestServerGrowsAVolume(t *testing.T) {
	s := connectServer(t)
	for _, program := range []string{"sh", "kubectl", "helm"} {
		_, err := exec.LookPath(program)
		require.NoError(t, err, "`make gate` puts it into PATH")
	}
	namespace := s.restrictedNamespace(t)
	s.expandableVolumes(t, namespace, "1Gi", "wal-stemedb-0", "wal-stemedb-1", "wal-stemedb-2", "db-stemedb-0", "db-stemedb-1", "db-stemedb-2")
	overlay := filepath.Join(t.TempDir(), "overlay.yaml")
	require.NoError(t, os.WriteFile(overlay, []byte(fmt.Sprintf(`
nodeSelector: {stemedb.dev/test: no-node-has-this}
secrets: {job: {enabled: false}} # its pod would not be scheduled either
persistence:
  wal: {size: 1Gi, storageClassName: %[1]s}
  db: {size: 1Gi, storageClassName: %[1]s}
`, namespace)), 0o600))
	shell := func(script string) {
		t.Helper()
		script = strings.NewReplacer("-n stemedb ", "-n "+namespace+" ", "values/production.yaml", "values/production.yaml -f "+overlay).Replace(script)
		command := exec.CommandContext(t.Context(), "sh", "-e", "-c", script)
		command.Dir = filepath.Join(chartDir, "..", "..")
		command.Env = append(os.Environ(), "KUBECONFIG="+os.Getenv(kubeconfigEnv))
		out, err := command.CombinedOutput()
		require.NoError(t, err, "%s\n%s", script, out)
	}

	const upgrade = "helm upgrade --install stemedb charts/stemedb -n stemedb -f values/production.yaml"
	shell(upgrade)
	before := map[string]types.UID{}
	require.Eventually(t, func() bool {
		for _, pod := range s.members(t, namespace) {
			before[pod.Name] = pod.UID
		}
		return len(before) == 3 && s.bound(t, namespace) == 6
	}, time.Minute, 500*time.Millisecond, "no three pods with bound claims")
	sets := s.typed.AppsV1().StatefulSets(namespace)
	old, err := sets.Get(t.Context(), "stemedb", metav1.GetOptions{})
	require.NoError(t, err)

	resizing, done := context.WithCancel(t.Context())
	var resizer sync.WaitGroup
	resizer.Go(func() { s.resize(resizing, namespace) })
	shell(growSteps(t))
	done()
	resizer.Wait()

	grown, err := sets.Get(t.Context(), "stemedb", metav1.GetOptions{})
	require.NoError(t, err)
	require.NotEqual(t, old.UID, grown.UID, "the StatefulSet is a new one")
	for _, claim := range grown.Spec.VolumeClaimTemplates {
		require.Equal(t, map[string]string{"wal": "1Gi", "db": "100Gi"}[claim.Name], claim.Spec.Resources.Requests.Storage().String())
	}
	require.Eventually(t, func() bool {
		now, err := sets.Get(t.Context(), "stemedb", metav1.GetOptions{})
		if err != nil || now.Status.ObservedGeneration != now.Generation || now.Status.Replicas != 3 {
			return false
		}
		adopted := 0
		for _, pod := range s.members(t, namespace) {
			if owner := metav1.GetControllerOf(&pod); owner != nil && owner.UID == grown.UID {
				adopted++
			}
		}
		return adopted == 3
	}, time.Minute, 500*time.Millisecond, "the pods are not adopted")
	after := map[string]types.UID{}
	for _, pod := range s.members(t, namespace) {
		require.Nil(t, pod.DeletionTimestamp, pod.Name)
		after[pod.Name] = pod.UID
	}
	require.Equal(t, before, after, "a pod was recreated")

	// Later upgrades work as usual.
	shell(upgrade + " --set persistence.db.size=100Gi --set server.logLevel=debug")
}

// expandableVolumes creates a StorageClass with the namespace's name that allows
// expansion, and a volume for each claim: there is no provisioner.
func (s *server) expandableVolumes(t *testing.T, namespace, size string, claims ...string) {
	t.Helper()
	allowed := true
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: namespace}, Provisioner: "stemedb.dev/none", AllowVolumeExpansion: &allowed}
	_, err := s.typed.StorageV1().StorageClasses().Create(t.Context(), class, metav1.CreateOptions{})
	require.NoError(t, err)
	remove := func(what func(context.Context, string, metav1.DeleteOptions) error, name string) {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			_ = what(ctx, name, metav1.DeleteOptions{})
		})
	}
	remove(s.typed.StorageV1().StorageClasses().Delete, class.Name)
	volumes := s.typed.CoreV1().PersistentVolumes()
	for _, claim := range claims {
		volume := &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: namespace + "-" + claim},
			Spec: corev1.PersistentVolumeSpec{
				Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
				AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
				StorageClassName:              class.Name,
				ClaimRef:                      &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: namespace, Name: claim},
				PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/nonexistent"}},
			},
		}
		_, err := volumes.Create(t.Context(), volume, metav1.CreateOptions{})
		require.NoError(t, err)
		remove(volumes.Delete, volume.Name)
	}
}

// members are the server's pods.
func (s *server) members(t *testing.T, namespace string) []corev1.Pod {
	t.Helper()
	pods, err := s.typed.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=server"})
	if err != nil {
		return nil // retried
	}
	return pods.Items
}

func (s *server) bound(t *testing.T, namespace string) int {
	t.Helper()
	claims, err := s.typed.CoreV1().PersistentVolumeClaims(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		return 0 // retried
	}
	n := 0
	for _, claim := range claims.Items {
		if claim.Status.Phase == corev1.ClaimBound {
			n++
		}
	}
	return n
}

// resize sets each claim's capacity to the requested size, as the storage's
// controller does after growing the volume.
func (s *server) resize(ctx context.Context, namespace string) {
	claims := s.typed.CoreV1().PersistentVolumeClaims(namespace)
	for ctx.Err() == nil {
		if list, err := claims.List(ctx, metav1.ListOptions{}); err == nil {
			for _, claim := range list.Items {
				asked := claim.Spec.Resources.Requests[corev1.ResourceStorage]
				if held := claim.Status.Capacity[corev1.ResourceStorage]; held.Cmp(asked) < 0 {
					grown := fmt.Sprintf(`{"status":{"capacity":{"storage":%q}}}`, asked.String())
					_, _ = claims.Patch(ctx, claim.Name, types.MergePatchType, []byte(grown), metav1.PatchOptions{}, "status")
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}
