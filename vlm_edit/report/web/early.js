try {
  const theme = localStorage.getItem("vlm-edit-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* storage may be closed to files */ }
