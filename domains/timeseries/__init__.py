"""Time series: forecasting, imputation, anomaly scores and classification."""
